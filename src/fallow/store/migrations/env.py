"""Run by Alembic: uses the connection, and the transaction, that store.upgrade hands in."""

from __future__ import annotations

from alembic import context

from fallow.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
