"""What SqlStore needs of a database: sessions that run the statements of statements.py by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fallow.store.protocol import StoreError

Row = tuple[Any, ...]


class Session(Protocol):
    """A connection. Outside of begin() and commit(), a statement sees the last committed state."""

    def run(self, name: str, values: Mapping[str, Any] = {}) -> list[Row]:
        """Run a statement and fetch all that it returns."""

    def run_many(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row."""

    def begin(self) -> None:
        """Begin a transaction that writes: no other writer gets between."""

    def commit(self) -> None:
        """What was written is on the disk when this returns."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    def tables(self) -> set[str]:
        """Names of the tables that are there."""

    def create_schema(self) -> None:
        """Make the present schema in an empty database."""

    def upgrade(self) -> None:
        """Run the migrations that are missing."""


class Database(Protocol):
    """Where sessions come from."""

    where: str
    """To show to people."""
    errors: tuple[type[Exception], ...]
    """What the driver raises."""

    def prepare(self) -> None:
        """Before the first session: make folders and files."""

    def connect(self) -> Session: ...

    def in_words(self, error: Exception) -> StoreError | None:
        """The error for people, if it is the world's fault and not the program's."""
