"""Sessions of coordinators, leadership, and jobs by the blobs that they name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_real = sa.Float().with_variant(sa.Double(), "postgresql")
_key = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_index("job_blobs_by_digest", "job_blobs", ["digest"])
    op.create_table(
        "sessions",
        sa.Column("owner", _key, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("renewed_unix_s", _real, nullable=False),
        sa.Column("ttl_s", _real, nullable=False),
        sa.Column("info", sa.Text, nullable=False),
    )
    op.create_table(
        "leaderships",
        sa.Column("role", _key, primary_key=True),
        sa.Column("owner", _key, nullable=False),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("until_unix_s", _real, nullable=False),
    )
