"""What SqlStore needs of a database: sessions that run the statements of statements.py by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fallow.store.protocol import StoreError, StoreUnavailable

Row = tuple[Any, ...]


class Conflict(StoreUnavailable):
    """Another transaction was in the way: nothing was kept, and trying again at once is right."""


class Blocked(Conflict):
    """Another transaction kept its locks for so long that it may have been left there by somebody who stopped."""


class Session(Protocol):
    """A connection. Outside of begin() and commit(), a statement sees the last committed state."""

    def run(self, name: str, values: Mapping[str, Any] = {}) -> list[Row]:
        """Run a statement and fetch all that it returns."""

    def run_each(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[list[Row]]:
        """What `run` returns for each of them, without waiting for one after another where the engine is far away."""

    def run_many(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row. What goes wrong may show with a later call of this transaction."""

    def begin(self) -> None:
        """Begin a transaction that writes: no other writer gets between."""

    def commit(self) -> None:
        """What was written is on the disk when this returns."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    def lock_schema(self) -> None:
        """Let nobody else make or change the schema until this transaction ends."""

    def tables(self) -> set[str]:
        """Names of the tables that are there."""

    def create_schema(self) -> None:
        """Make the present schema in an empty database."""

    def upgrade(self, revision: str = "head") -> None:
        """Run the migrations that are missing up to that one."""

    # ------------------------------------------------------------ whole tables, for moves and backups

    def begin_snapshot(self) -> None:
        """Begin a transaction that only reads, and sees one moment."""

    def begin_alone(self) -> None:
        """Begin a transaction that writes, however long it takes. Raises StoreError where others have the store
        open and the engine can tell."""

    def read_table(self, table: str, columns: Sequence[str]) -> Iterator[Row]:
        """All rows, in any order, a few at a time."""

    def write_table(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert rows."""

    def renumber(self, table: str, column: str) -> None:
        """Go on counting where the highest number of a column ends that was written by write_table."""


class Database(Protocol):
    """Where sessions come from."""

    where: str
    """To show to people."""
    upgrades_itself: bool
    """Whether opening an older schema brings it up to date: not where other coordinators may be at work."""
    one_writer: bool
    """Whether only one transaction writes at a time, whoever begins it."""
    errors: tuple[type[Exception], ...]
    """What the driver raises."""

    def exists(self) -> bool:
        """False where it is known that there is nothing yet."""

    def prepare(self) -> None:
        """Before the first session: make folders and files."""

    def connect(self) -> Session: ...

    def end_stalled(self) -> None:
        """End transactions whose coordinator was stopped, or cut off, in the middle."""

    def in_words(self, error: Exception) -> StoreError | None:
        """The error for people, if it is the world's fault and not the program's."""


def load_statements(engine: str) -> tuple[dict[str, str], list[str]]:
    """(statements by name, statements that make the schema) from what render.py wrote for the engine."""
    text = Path(__file__).with_name(f"{engine}.sql").read_text()
    sections = [section.partition("\n") for section in text.split("\n-- name: ")[1:]]
    return (
        {name: body.strip() for name, _, body in sections if name != "schema"},
        [body.strip() for name, _, body in sections if name == "schema"],
    )
