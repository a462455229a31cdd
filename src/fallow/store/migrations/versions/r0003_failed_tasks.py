"""How many tasks of a job failed, for listings of jobs that have ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("failed", sa.BigInteger, nullable=False, server_default="0"))
