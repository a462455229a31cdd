"""The schema, as SQLAlchemy Core tables. A change here needs a migration in migrations/versions/ (a test compares).

Jobs are referred to by a number, so that rows stay small; what a job's progress updates lies apart from its spec,
since an update rewrites the whole row. The bytes of a page are the last column, so that listings skip them.
Of a dropped result page nothing remains but a merged interval: a job of 100 million tasks costs kilobytes.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

_Number = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column whose type is INTEGER."""

_Real = Float().with_variant(Double(), "postgresql")
_Key = String().with_variant(String(collation="C"), "postgresql")
"""Text that is compared by its bytes, in whatever language the database was made."""

meta = Table(
    "meta",
    metadata,
    Column("name", _Key, primary_key=True),
    Column("value", Text, nullable=False),
)

alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False, primary_key=True),
)
"""Alembic's own; here so that a fresh store needs no Alembic (its row: schema.HEAD_REVISION)."""

jobs = Table(
    "jobs",
    metadata,
    Column("number", _Number, primary_key=True),
    Column("job_id", _Key, nullable=False),
    Column("name", _Key, nullable=False),
    Column("state", String, nullable=False),
    Column("owner", _Key, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("created_unix_s", _Real, nullable=False),
    Column("ended_unix_s", _Real, nullable=False),
    Column("nodes", LargeBinary, nullable=False),
    Column("input_error", Text, nullable=False),
    Column("consumed", BigInteger, nullable=False),
    Column("retried", BigInteger, nullable=False),
    Column("inputs_below", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("wasted_s", _Real, nullable=False, server_default="0"),
    Index("jobs_by_id", "job_id", unique=True),
    Index("jobs_by_name", "name", "number"),
    Index("jobs_by_state", "state", "number"),
)

job_specs = Table(
    "job_specs",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("spec", LargeBinary, nullable=False),
)

job_blobs = Table(
    "job_blobs",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("digest", _Key, primary_key=True),
    Index("job_blobs_by_digest", "digest"),
)
"""Blobs that a job's spec names: function, modules."""

input_pages = Table(
    "input_pages",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("stop", BigInteger, nullable=False),
    Column("digest", _Key, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("inline", Boolean, nullable=False),
    Column("data", LargeBinary),
    Index("input_blobs", "digest", sqlite_where=text("NOT inline"), postgresql_where=text("NOT inline")),
)

result_pages = Table(
    "result_pages",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("stop", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("page_start", BigInteger, nullable=False),
    Column("failed_count", BigInteger, nullable=False),
    Column("failed", LargeBinary),
    Column("fault", LargeBinary),
    Column("node", String, nullable=False),
    Column("digest", _Key, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("inline", Boolean, nullable=False),
    Column("data", LargeBinary),
    Index("result_order", "job", "seq", "start"),
    Index("result_blobs", "digest", sqlite_where=text("NOT inline"), postgresql_where=text("NOT inline")),
)

done_intervals = Table(
    "done_intervals",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("stop", BigInteger, nullable=False),
)
"""What was recorded and dropped; disjoint, and never touching."""

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("task", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", _Key, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("inline", Boolean, nullable=False),
    Column("data", LargeBinary),
    Index("checkpoint_blobs", "digest", sqlite_where=text("NOT inline"), postgresql_where=text("NOT inline")),
)
"""What tasks that are not done have saved of their state."""

logs = Table(
    "logs",
    metadata,
    Column("job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("line", LargeBinary, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", _Key, primary_key=True),
    Column("spec", LargeBinary, nullable=False),
    Column("unix_s", _Real, nullable=False),
    Column("state", String, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("owner", _Key, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("renewed_unix_s", _Real, nullable=False),
    Column("ttl_s", _Real, nullable=False),
    Column("info", Text, nullable=False),
)
"""One row a coordinator. renewed_unix_s rises with every renewal, and is the database's clock unless that was set back.
A negative ttl_s: it is over, ended by itself or by others."""

leaderships = Table(
    "leaderships",
    metadata,
    Column("role", _Key, primary_key=True),
    Column("owner", _Key, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("until_unix_s", _Real, nullable=False),
)
"""Who leads in a role, while its session lasts. until_unix_s: 0 where it was ended, else of no meaning."""
