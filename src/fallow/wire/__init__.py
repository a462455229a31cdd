"""Subjects, messages, codecs and the NATS connection."""
