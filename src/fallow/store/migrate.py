"""Moving a pool's truth from one store to another, with its coordinators stopped.

The old store is marked 'moving' first, so that no coordinator opens it any more. Then everything is copied and read
back in one transaction of the new store; once that is committed, the old one is marked 'moved' for good. A move that
was cut short at any point is finished, or begun again, by running it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from msgspec import Struct

from fallow.store.database import Database, Session
from fallow.store.open import database_of
from fallow.store.protocol import StoreError, StoreMoved
from fallow.store.schema import MOVED_TO, MOVING_TO, bring_up_to_date, refuse_live

_was = {MOVED_TO: "was moved to", MOVING_TO: "is being moved to"}

Report = Callable[[str], None]


class Moved(Struct, frozen=True):
    """What a move came to."""

    source: str
    target: str
    rows: int
    """0 where an earlier run had copied them already."""


def what_is_needed(url: str) -> tuple[str, tuple[str, ...]]:
    """(id of the pool, digests of the blobs that its jobs need) of a store. Raises StoreError in words."""
    database = database_of(url)
    if not database.exists():
        raise StoreError(f"there is no store {database.where}.")
    with in_words(database), contextlib.closing(database.connect()) as session:
        session.begin_alone()
        with _transaction(session):
            notes = _notes_at_rest(session, database)
            return notes.get("pool_id", ""), tuple(sorted(str(row[0]) for row in session.run("live_digests")))


def migrate(source_url: str, target_url: str, report: Report = lambda line: None) -> Moved:
    """Move everything. `report` is told what happens, a line at a time. Raises StoreError in words."""
    source, target = database_of(source_url), database_of(target_url)
    if source.where == target.where:
        raise StoreError(f"{source.where} cannot be moved to itself: name another store with --to.")
    if not source.exists():
        raise StoreError(f"there is no store {source.where}.")
    with in_words(source), in_words(target), contextlib.closing(source.connect()) as old:
        if _mark_moving(old, source, target):
            report(f"{source.where} was moved to {target.where} before")
            return Moved(source.where, target.where, 0)
        try:
            rows = _copy(old, source, target, report)
        except Exception:
            _unmark(old)  # nothing came of it; only a crash leaves the mark
            raise
        _mark_moved(old, target)
    return Moved(source.where, target.where, rows)


def _notes_at_rest(session: Session, database: Database) -> dict[str, str]:
    """The notes of a store that may be moved: it has its tables as this code knows them, and nobody uses it. Raises
    StoreError."""
    if not session.tables():
        raise StoreError(f"{database.where} is empty: there is nothing to move.")
    bring_up_to_date(session, database.where, upgrade=False)
    refuse_live(session, database.where, "moved")
    return dict(session.run("notes"))


def _mark_moving(old: Session, source: Database, target: Database) -> bool:
    """Returns True where all is done already."""
    old.begin_alone()
    with _transaction(old):
        notes = _notes_at_rest(old, source)
        for name in (MOVED_TO, MOVING_TO):
            if notes.get(name, target.where) != target.where:
                raise StoreMoved(f"{source.where} {_was[name]} {notes[name]}: name that store with --to.")
        if MOVED_TO in notes:
            return True
        old.run("put_meta", {"name": MOVING_TO, "value": target.where})
    return False


def _copy(old: Session, source: Database, target: Database, report: Report) -> int:
    """Copy and prove it, in one transaction of the target. Returns the number of rows."""
    from fallow.store.transfer import MIGRATED_FROM, TABLES, TableSum, renumber, rows_of, sum_of, summed

    known: dict[str, str] = dict(old.run("notes"))
    identity = f"{source.where} {known.get('pool_id', '')}"
    target.prepare()
    count = 0
    with contextlib.closing(target.connect()) as new:
        new.begin_alone()
        with _transaction(new):
            bring_up_to_date(new, target.where, upgrade=False)
            refuse_live(new, target.where, "filled")
            notes: dict[str, str] = dict(new.run("notes"))
            if notes.get(MIGRATED_FROM) == identity:
                report(f"{target.where} was filled by an earlier run")
                return 0
            if notes or new.run("list_jobs", {"count": 1}):
                raise StoreError(
                    f"{target.where} holds a pool already ({notes.get('pool_id', 'without a name')}). Name an empty "
                    "database, or a schema of its own: ?schema=NAME."
                )
            old.begin_snapshot()
            try:
                for table, columns in TABLES.items():
                    sent = TableSum()
                    new.write_table(table, columns, summed(rows_of(old, table, columns), sent))
                    arrived = sum_of(new, table, columns)
                    if sent != arrived:
                        raise StoreError(
                            f"the table {table} did not arrive as it was sent ({sent.rows} rows {sent.text}, "
                            f"{arrived.rows} rows {arrived.text}). Nothing was moved."
                        )
                    report(f"{table}: {sent.rows} rows, checked")
                    count += sent.rows
            finally:
                old.rollback()
            renumber(new)
            new.run("put_meta", {"name": MIGRATED_FROM, "value": identity})
    return count


def _mark_moved(old: Session, target: Database) -> None:
    old.begin()
    with _transaction(old):
        old.run("put_meta", {"name": MOVED_TO, "value": target.where})
        old.run("drop_meta", {"note": MOVING_TO})


def _unmark(old: Session) -> None:
    old.begin()
    with _transaction(old):
        old.run("drop_meta", {"note": MOVING_TO})


@contextlib.contextmanager
def _transaction(session: Session) -> Iterator[None]:
    """The end of one that was begun."""
    try:
        yield
    except BaseException:
        session.rollback()
        raise
    session.commit()


@contextlib.contextmanager
def in_words(database: Database, of_files: bool = True) -> Iterator[None]:
    """The engine's errors as StoreError; those of files too, where the database is the only one that touches any."""
    errors: tuple[type[Exception], ...] = (*database.errors, OSError) if of_files else database.errors
    try:
        yield
    except errors as error:
        words = database.in_words(error)
        if words is None:
            raise
        raise words from error
