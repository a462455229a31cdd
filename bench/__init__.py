"""Fallow and its peers on the same work, in one run. See __main__.py."""
