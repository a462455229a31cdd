"""The systems that are measured: one file each, all of one shape (see base.py)."""

from __future__ import annotations

from importlib import import_module

from bench.peers.base import Peer

NAMES = ("fallow", "pool", "ppe", "loky", "joblib", "ray", "dask", "parsl", "celery")
"""In the order of the report; Fallow first."""


def peer_class(name: str) -> type[Peer]:
    """The class of a peer. Importing its file needs nothing of the peer's own packages."""
    found: type[Peer] = import_module(f"bench.peers.{name}_peer").PEER
    return found
