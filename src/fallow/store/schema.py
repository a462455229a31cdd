"""Which schema a database has, and the quick way to a fresh one.

A fresh database gets the tables as they are now, stamped with the revision that they equal; Alembic is imported
only where a database is older (it takes a tenth of a second).
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, inspect, select

from fallow.store import tables
from fallow.store.protocol import SchemaTooNew, StoreError


def bring_up_to_date(connection: Connection, where: str) -> bool:
    """Create the schema where there is none. False: it is older than this program, and needs `upgrade`.
    Raises SchemaTooNew, and StoreError for a database that is not a store."""
    present = set(inspect(connection).get_table_names())
    if not present:
        tables.metadata.create_all(connection, checkfirst=False)
        connection.execute(insert(tables.alembic_version), {"version_num": tables.HEAD_REVISION})
        return True
    if "alembic_version" not in present:
        raise StoreError(f"{where} is a database, but not of Fallow. Name another file, or move this one away.")
    revision = connection.execute(select(tables.alembic_version.c.version_num)).scalar()
    if revision == tables.HEAD_REVISION:
        return True
    from fallow.store.upgrade import is_known

    if revision is not None and not is_known(revision):
        raise SchemaTooNew(
            f"{where} was written by a newer Fallow (schema {revision}; this one knows up to {tables.HEAD_REVISION}). "
            "Install the newest one: pip install --upgrade fallow"
        )
    return False
