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


def upgrade_sqlite(raw: sqlite3.Connection, revision: str = "head") -> None:
    """Run what is missing over a connection, in the transaction that its caller has begun and will commit."""
    _upgrade_over("sqlite://", raw, revision)


def upgrade_postgresql(raw: psycopg.Connection[Any], revision: str = "head") -> None:
    """Run what is missing over a connection, in the transaction that its caller has begun and will commit."""
    _upgrade_over("postgresql+psycopg://", raw, revision)


def _upgrade_over(url: str, raw: object, revision: str) -> None:
    engine = sqlalchemy.create_engine(
        url, creator=lambda: raw, poolclass=sqlalchemy.StaticPool, pool_reset_on_return=None
    )
    dialect: Any = engine.dialect
    # It would roll back as it looks at a connection for the first time.
    dialect.do_rollback = dialect.do_commit = lambda connection: None
    with engine.connect() as connection:
        upgrade(connection, revision)
        connection.commit()
