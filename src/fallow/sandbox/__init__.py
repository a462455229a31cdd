"""Backends that run a program apart from the machine's owner, behind one protocol."""
