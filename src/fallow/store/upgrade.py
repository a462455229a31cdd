"""Migrations: bring an older database to the present schema. Imports Alembic, so import this only when needed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection

if TYPE_CHECKING:
    import psycopg


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def is_known(revision: str) -> bool:
    """Say whether this program has the migration of that name."""
    try:
        return ScriptDirectory.from_config(_config()).get_revision(revision) is not None
    except CommandError:
        return False


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run what is missing, inside the caller's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def upgrade_store(url: str) -> tuple[str, str]:
    """Bring the store that the URL names up to date, while no coordinator is at work: (revision before, after).
    Raises StoreError in words."""
    from fallow.store.open import database_of
    from fallow.store.sql import SqlStore

    store = SqlStore(database_of(url))
    try:
        return store.upgrade()
    finally:
        store.close()


def upgrade_sqlite(raw: sqlite3.Connection) -> None:
    """Run what is missing over a connection that is in a transaction, and commit it."""
    _upgrade_over("sqlite://", raw)


def upgrade_postgresql(raw: psycopg.Connection[Any]) -> None:
    """Run what is missing over a connection that is in a transaction, and commit it."""
    _upgrade_over("postgresql+psycopg://", raw)


def _upgrade_over(url: str, raw: object) -> None:
    engine = sqlalchemy.create_engine(url, creator=lambda: raw, poolclass=sqlalchemy.StaticPool)
    with engine.connect() as connection:
        upgrade(connection)
        connection.commit()
