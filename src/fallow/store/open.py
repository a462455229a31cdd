"""Opening the store that a URL names."""

from __future__ import annotations

from pathlib import Path

from fallow.store.protocol import Store, StoreError
from fallow.store.sql import SqlStore
from fallow.store.sqlite import SqliteDatabase

_SCHEME = "sqlite:///"


def open_store(url: str) -> Store:
    """Open `sqlite:///PATH` (an absolute path has four slashes), making it where it is not there yet.
    Raises StoreError in words."""
    path = url.removeprefix(_SCHEME)
    if path == url:
        shown = url.split("@")[-1] if "@" in url else url  # never print a password
        raise StoreError(
            f"{shown!r} is not a store that Fallow knows. Supported: sqlite:///PATH, such as "
            "sqlite:////var/lib/fallow/pool.db (an absolute path has four slashes)."
        )
    if not path or path == ":memory:":
        raise StoreError(f"{url!r} names no file. Expected sqlite:///PATH, such as sqlite:///pool.db.")
    store = SqlStore(SqliteDatabase(Path(path).absolute()))
    store.open()
    return store
