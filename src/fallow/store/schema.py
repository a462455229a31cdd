"""Which schema a database has, and bringing it up to date.

A fresh database gets the tables as they are now, stamped with the revision that they equal; Alembic and SQLAlchemy
are imported only where a database is older: that takes a third of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fallow.core.sessions import Renewal, SessionWatch
from fallow.store.database import Session
from fallow.store.protocol import SchemaTooNew, SchemaTooOld, StoreError, StoreMoved

HEAD_REVISION = "0005"
"""The migration that tables.py equals."""

MOVING_TO = "moving_to"
MOVED_TO = "moved_to"
"""Names in the table meta, with where the store's content goes or went."""
SECRET_MARK = "secret_mark"
"""The same, with what stands for the secret of the store's pool."""
WATCHED_S = 10.0
"""A session that promises to last longer is not waited for."""
LOOK_EVERY_S = 0.1


def bring_up_to_date(session: Session, where: str, upgrade: bool) -> None:
    """Create the schema where there is none, `upgrade` an older one, inside the caller's transaction.
    Raises SchemaTooNew, SchemaTooOld, and StoreError for a database that is not a store."""
    session.lock_schema()
    present = session.tables()
    if not present:
        session.create_schema()
        return
    if "alembic_version" not in present:
        raise StoreError(f"{where} is a database, but not of Fallow. Name another one, or move this one away.")
    revision = revision_of(session)
    if revision == HEAD_REVISION:
        return
    from fallow.store.upgrade import is_known

    if revision and not is_known(revision):
        raise SchemaTooNew(
            f"{where} was written by a newer Fallow (schema {revision}; this one knows up to {HEAD_REVISION}). "
            "Install the newest one: pip install --upgrade fallow"
        )
    if not upgrade:
        raise SchemaTooOld(
            f"{where} has the schema of an older Fallow ({revision or 'none'}; this one needs {HEAD_REVISION}). Stop "
            "the pool's coordinators, then run: fallow store upgrade --store URL"
        )
    session.upgrade()


def revision_of(session: Session) -> str:
    """The schema's revision; '' before the first one."""
    return next((str(row[0]) for row in session.run("revision")), "")


def refuse_moved(session: Session, where: str) -> None:
    """Raises StoreMoved for a store whose content was moved, or is being moved, elsewhere."""
    notes: dict[str, str] = dict(session.run("notes"))
    if MOVED_TO in notes:
        raise StoreMoved(
            f"{where} was moved to {notes[MOVED_TO]}: start the pool with --store and that one's URL. This one is kept "
            "as it was, and may be deleted."
        )
    if MOVING_TO in notes:
        raise StoreMoved(
            f"{where} is being moved to {notes[MOVING_TO]}, and that was not finished: run `fallow store migrate` with "
            "the same URLs again."
        )


def refuse_live(session: Session, where: str, what: str) -> None:
    """Raises StoreError while a coordinator is at work: then the store cannot be `what`. Takes as long as a session
    holds where one was not ended in order."""
    owners = at_work(lambda: [Renewal(*row) for row in session.run("sessions")])
    if owners:
        raise StoreError(
            f"{where} cannot be {what} while coordinators are at work: {', '.join(owners)}. Stop them, wait until "
            "their sessions have ended, and run this again."
        )


def at_work(read: Callable[[], list[Renewal]]) -> list[str]:
    """Owners whose sessions are being renewed, by watching them: clocks may have been set since."""
    watch = SessionWatch()
    known = {renewal.owner: renewal.stamp for renewal in read()}
    while True:
        renewals = read()
        silent = {renewal.owner for renewal in watch.silent(renewals, time.monotonic())}
        renewed = [
            renewal.owner
            for renewal in renewals
            if known.get(renewal.owner) != renewal.stamp or renewal.ttl_s > WATCHED_S
        ]
        if len(silent | set(renewed)) == len(renewals):
            return renewed
        time.sleep(LOOK_EVERY_S)
