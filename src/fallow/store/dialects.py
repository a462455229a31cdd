"""What SQLite and PostgreSQL word differently: lists as parameters, the database's clock, upserts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Float, String, Table, bindparam
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import NullType


def upsert(table: Table) -> Any:
    """An INSERT that may say ON CONFLICT: worded alike by both."""
    return postgresql.insert(table)


class Now(ColumnElement[float]):
    """The database's clock, in unix seconds. Moves on within a transaction."""

    type = Float()
    inherit_cache = True


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: Any, **more: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def _now_postgresql(element: Now, compiler: Any, **more: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


class _IsListed(ColumnElement[Any]):
    type = NullType()  # SQLite has no booleans: it would be compared with 1, and no index used
    inherit_cache = False

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        self.values = bindparam(name, type_=String())


def is_listed(column: ColumnElement[Any], name: str) -> Any:
    """Whether the column's value is in the parameter `name`, which is a JSON array."""
    return _IsListed(column, name)


@compiles(_IsListed, "sqlite")
def _listed_sqlite(element: _IsListed, compiler: Any, **more: Any) -> str:
    values = compiler.process(element.values, **more)
    return f"{compiler.process(element.column, **more)} IN (SELECT value FROM json_each({values}))"


@compiles(_IsListed, "postgresql")
def _listed_postgresql(element: _IsListed, compiler: Any, **more: Any) -> str:
    kind = "BIGINT" if isinstance(element.column.type, BigInteger) else "TEXT"
    values = compiler.process(element.values, **more)
    array = f"ARRAY(SELECT CAST(json_array_elements_text(CAST({values} AS JSON)) AS {kind}))"
    return f"{compiler.process(element.column, **more)} = ANY ({array})"
