"""Which schema a database has, and bringing it up to date.

A fresh database gets the tables as they are now, stamped with the revision that they equal; Alembic and SQLAlchemy
are imported only where a database is older: that takes a third of a second.
"""

from __future__ import annotations

from fallow.store.database import Session
from fallow.store.protocol import SchemaTooNew, StoreError

HEAD_REVISION = "0001"
"""The migration that tables.py equals."""


def bring_up_to_date(session: Session, where: str) -> None:
    """Create the schema where there is none, upgrade an older one, inside the caller's transaction.
    Raises SchemaTooNew, and StoreError for a database that is not a store."""
    present = session.tables()
    if not present:
        session.create_schema()
        return
    if "alembic_version" not in present:
        raise StoreError(f"{where} is a database, but not of Fallow. Name another file, or move this one away.")
    revision = next((row[0] for row in session.run("revision")), None)
    if revision == HEAD_REVISION:
        return
    from fallow.store.upgrade import is_known

    if revision is not None and not is_known(revision):
        raise SchemaTooNew(
            f"{where} was written by a newer Fallow (schema {revision}; this one knows up to {HEAD_REVISION}). "
            "Install the newest one: pip install --upgrade fallow"
        )
    session.upgrade()
