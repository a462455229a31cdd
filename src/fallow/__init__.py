"""Fallow: one computer out of many idle ones."""
