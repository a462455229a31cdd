"""Whole tables from one store to another, or to a file: in rows that are the same for every engine, and with sums that
prove that they arrived. Imports SQLAlchemy, so import this only when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import blake3
import msgspec
from sqlalchemy import Boolean, Float, LargeBinary, String

from fallow.store import tables
from fallow.store.database import Row, Session
from fallow.store.schema import MOVED_TO, MOVING_TO

MIGRATED_FROM = "migrated_from"
"""Name in the table meta of a store that was filled from another one."""

TABLES: dict[str, tuple[str, ...]] = {
    str(table.name): tuple(str(column.name) for column in table.columns)
    for table in tables.metadata.sorted_tables
    if table not in (tables.alembic_version, tables.sessions)
}
"""Columns by table, of what makes up a pool; tables that others refer to come first. Sessions are of processes, and
end with them."""

_OF_ONE_STORE = {MOVING_TO, MOVED_TO, MIGRATED_FROM}
_encode = msgspec.msgpack.Encoder().encode
_MODULUS = 1 << 128


class TableSum(msgspec.Struct):
    """How many rows a table has, and a sum of their digests: the same in whatever order they are read."""

    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.total = (self.total + int.from_bytes(blake3.blake3(_encode(row)).digest(length=16), "big")) % _MODULUS

    @property
    def text(self) -> str:
        return f"{self.total:032x}"


def rows_of(session: Session, table: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a table as every engine gives them back: what is of the one store alone is left out."""
    known = tables.metadata.tables[table].columns
    kinds = [_kind(known[name].type) for name in columns]
    for row in session.read_table(table, columns):
        if table != tables.meta.name or row[0] not in _OF_ONE_STORE:
            yield tuple(None if value is None else kind(value) for kind, value in zip(kinds, row, strict=True))


def summed(rows: Iterable[Row], result: TableSum) -> Iterator[Row]:
    """The rows, added to the sum as they pass."""
    for row in rows:
        result.add(row)
        yield row


def sum_of(session: Session, table: str, columns: Sequence[str]) -> TableSum:
    """What is in a table now."""
    result = TableSum()
    for row in rows_of(session, table, columns):
        result.add(row)
    return result


def renumber(session: Session) -> None:
    """After tables were written: jobs go on being numbered after the last one."""
    session.renumber(tables.jobs.name, "number")


def _text(value: object) -> str:
    # PostgreSQL's text holds no NUL.
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")


def _kind(type_: object) -> Callable[[Any], object]:
    if isinstance(type_, Boolean):
        return bool
    if isinstance(type_, Float):
        return float
    if isinstance(type_, LargeBinary):
        return bytes
    return _text if isinstance(type_, String) else int
