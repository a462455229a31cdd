"""Frozen types, identifiers, units and states. Imports nothing of ours."""
