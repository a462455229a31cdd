"""Renders the schema and the statements to SQL for SQLite: `python -m fallow.store.render` rewrites sqlite.sql."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from fallow.store import tables
from fallow.store.schema import HEAD_REVISION
from fallow.store.statements import STATEMENTS

RENDERED = Path(__file__).with_name("sqlite.sql")

_HEAD = "-- Rendered by `python -m fallow.store.render` from tables.py and statements.py. Do not edit.\n"


def rendered() -> str:
    """The text of sqlite.sql: sections that begin with '-- name: NAME'; the schema's statements are all named
    'schema'."""
    sqlite = dialect(paramstyle="named")
    parts = []
    for table in tables.metadata.sorted_tables:
        parts.append(("schema", str(CreateTable(table).compile(dialect=sqlite))))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            parts.append(("schema", str(CreateIndex(index).compile(dialect=sqlite))))
    parts.append(("schema", f"INSERT INTO alembic_version (version_num) VALUES ('{HEAD_REVISION}')"))
    parts += [(name, str(statement.compile(dialect=sqlite))) for name, statement in STATEMENTS.items()]
    return _HEAD + "".join(f"\n-- name: {name}\n{_tidy(text)}\n" for name, text in parts)


def _tidy(text: str) -> str:
    return "\n".join(line.replace("\t", "  ").rstrip() for line in text.strip().splitlines())


if __name__ == "__main__":
    RENDERED.write_text(rendered())
