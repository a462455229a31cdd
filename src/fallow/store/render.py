"""Renders the schema and the statements to SQL: `python -m fallow.store.render` rewrites sqlite.sql and
postgresql.sql."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from fallow.store import tables
from fallow.store.schema import HEAD_REVISION
from fallow.store.statements import ONLY_POSTGRESQL, STATEMENTS

ENGINES = ("sqlite", "postgresql")

_HEAD = "-- Rendered by `python -m fallow.store.render` from tables.py and statements.py. Do not edit.\n"


def path_of(engine: str) -> Path:
    """Where the SQL of an engine lies."""
    return Path(__file__).with_name(f"{engine}.sql")


def rendered(engine: str) -> str:
    """The text of that file: sections that begin with '-- name: NAME'; the schema's statements are all named
    'schema'."""
    make: Any = PGDialect_psycopg
    dialect = sqlite_dialect(paramstyle="named") if engine == "sqlite" else make()
    parts = []
    for table in tables.metadata.sorted_tables:
        parts.append(("schema", str(CreateTable(table).compile(dialect=dialect))))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            parts.append(("schema", str(CreateIndex(index).compile(dialect=dialect))))
    parts.append(("schema", f"INSERT INTO alembic_version (version_num) VALUES ('{HEAD_REVISION}')"))
    statements = STATEMENTS if engine == "sqlite" else {**STATEMENTS, **ONLY_POSTGRESQL}
    parts += [(name, str(statement.compile(dialect=dialect))) for name, statement in statements.items()]
    return _HEAD + "".join(f"\n-- name: {name}\n{_tidy(text)}\n" for name, text in parts)


def _tidy(text: str) -> str:
    return "\n".join(line.replace("\t", "  ").rstrip() for line in text.strip().splitlines())


if __name__ == "__main__":
    for each in ENGINES:
        path_of(each).write_text(rendered(each))
