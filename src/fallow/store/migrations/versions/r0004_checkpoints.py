"""What tasks save of their state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_key = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_in_store = sa.text("NOT inline")


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("job", _number, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("task", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", _key, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("inline", sa.Boolean, nullable=False),
        sa.Column("data", sa.LargeBinary),
    )
    op.create_index("checkpoint_blobs", "checkpoints", ["digest"], sqlite_where=_in_store, postgresql_where=_in_store)
