"""Run time of a job that was lost because owners wanted their machines back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_real = sa.Float().with_variant(sa.Double(), "postgresql")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("wasted_s", _real, nullable=False, server_default="0"))
