"""Alembic's migrations. store.upgrade runs them with a connection of its own; there is no alembic.ini."""
