"""Opening the store that a URL names."""

from __future__ import annotations

from pathlib import Path

from fallow.store.database import Database
from fallow.store.protocol import Store, StoreError
from fallow.store.sql import SqlStore
from fallow.store.sqlite import SqliteDatabase

_SQLITE = "sqlite:///"
_POSTGRESQL = ("postgresql://", "postgres://", "postgresql+psycopg://")


def open_store(url: str) -> Store:
    """Open `sqlite:///PATH` (an absolute path has four slashes), made where it is not there yet, or
    `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, whose tables are made in an empty database.
    Raises StoreError in words."""
    store = SqlStore(database_of(url))
    store.open()
    return store


def database_of(url: str) -> Database:
    """The database that a URL names; nothing is opened. Raises StoreError in words."""
    for scheme in _POSTGRESQL:
        if url.startswith(scheme):
            return _postgresql("postgresql://" + url.removeprefix(scheme))
    path = url.removeprefix(_SQLITE)
    if path == url:
        shown = url.split("@")[-1] if "@" in url else url  # never print a password
        raise StoreError(
            f"{shown!r} is not a store that Fallow knows. Supported: sqlite:///PATH, such as "
            "sqlite:////var/lib/fallow/pool.db (an absolute path has four slashes), and "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
        )
    if not path or path == ":memory:":
        raise StoreError(f"{url!r} names no file. Expected sqlite:///PATH, such as sqlite:///pool.db.")
    return SqliteDatabase(Path(path).absolute())


def _postgresql(url: str) -> Database:
    try:
        from fallow.store.postgresql import PostgresDatabase
    except ImportError as error:
        raise StoreError(
            f"a PostgreSQL store needs its driver, which cannot be imported here ({error}). "
            "Install it: pip install 'fallow[postgresql]'"
        ) from error
    return PostgresDatabase(url)
