"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_real = sa.Float().with_variant(sa.Double(), "postgresql")
_key = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def _job() -> sa.Column[int]:
    key = sa.ForeignKey("jobs.number", ondelete="CASCADE")
    return sa.Column("job", _number, key, primary_key=True, autoincrement=False)


def _page() -> list[sa.Column[object]]:
    return [
        sa.Column("digest", _key, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("inline", sa.Boolean, nullable=False),
        sa.Column("data", sa.LargeBinary),
    ]


def upgrade() -> None:
    op.create_table("meta", sa.Column("name", _key, primary_key=True), sa.Column("value", sa.Text, nullable=False))
    op.create_table(
        "jobs",
        sa.Column("number", _number, primary_key=True),
        sa.Column("job_id", _key, nullable=False),
        sa.Column("name", _key, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("owner", _key, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("created_unix_s", _real, nullable=False),
        sa.Column("ended_unix_s", _real, nullable=False),
        sa.Column("nodes", sa.LargeBinary, nullable=False),
        sa.Column("input_error", sa.Text, nullable=False),
        sa.Column("consumed", sa.BigInteger, nullable=False),
        sa.Column("retried", sa.BigInteger, nullable=False),
        sa.Column("inputs_below", sa.BigInteger, nullable=False),
    )
    op.create_index("jobs_by_id", "jobs", ["job_id"], unique=True)
    op.create_index("jobs_by_name", "jobs", ["name", "number"])
    op.create_index("jobs_by_state", "jobs", ["state", "number"])
    op.create_table("job_specs", _job(), sa.Column("spec", sa.LargeBinary, nullable=False))
    op.create_table("job_blobs", _job(), sa.Column("digest", _key, primary_key=True))
    op.create_table(
        "input_pages",
        _job(),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        *_page(),
    )
    op.create_table(
        "result_pages",
        _job(),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("page_start", sa.BigInteger, nullable=False),
        sa.Column("failed_count", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.LargeBinary),
        sa.Column("fault", sa.LargeBinary),
        sa.Column("node", sa.String, nullable=False),
        *_page(),
    )
    op.create_index("result_order", "result_pages", ["job", "seq", "start"])
    for index, table in (("input_blobs", "input_pages"), ("result_blobs", "result_pages")):
        only = sa.text("NOT inline")
        op.create_index(index, table, ["digest"], sqlite_where=only, postgresql_where=only)
    op.create_table(
        "done_intervals",
        _job(),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stop", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "logs",
        _job(),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", _key, primary_key=True),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("unix_s", _real, nullable=False),
        sa.Column("state", sa.String, nullable=False),
    )
