"""Every statement that the store runs, by name, in SQLAlchemy Core over the tables of tables.py.

Importing SQLAlchemy and building these takes a fifth of a second, a third of what a script that starts its own pool
may take in all. So they are rendered ahead: `python -m fallow.store.render` writes sqlite.sql and postgresql.sql,
which the stores run, and a test sees to it that the files are what would be rendered now. What differs from one
engine to the other is in dialects.py.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ClauseElement,
    ColumnElement,
    Float,
    String,
    Table,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    union,
    update,
)

from fallow.model.states import JobState
from fallow.store import tables
from fallow.store.dialects import Now, is_listed, upsert

_jobs, _inputs, _results = tables.jobs.c, tables.input_pages.c, tables.result_pages.c
_states = tables.checkpoints.c
_done, _logs, _specs = tables.done_intervals.c, tables.logs.c, tables.job_specs.c
_sessions, _leaders = tables.sessions.c, tables.leaderships.c

SETTABLE = (
    "state",
    "reason",
    "total",
    "ended_unix_s",
    "nodes",
    "input_error",
    "consumed",
    "retried",
    "failed",
    "wasted_s",
)
"""Columns of a job that SetJob sets."""


def _near(table: Any, *columns: Any) -> Any:
    """Rows of a job that may meet [low, high]: those that start in it, and the last one that starts before it."""
    start = table.c.start
    before = select(func.max(start)).where(table.c.job == bindparam("number"), start <= bindparam("low"))
    return (
        select(*columns)
        .where(
            table.c.job == bindparam("number"),
            start >= func.coalesce(before.scalar_subquery(), bindparam("low")),
            start <= bindparam("high"),
        )
        .order_by(start)
    )


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _put(table: Any) -> Any:
    """Insert a row; one that is there is left alone."""
    return upsert(table).values({name: bindparam(name) for name in _names(table)}).on_conflict_do_nothing()


def _read(table: Any) -> Any:
    return select(table.c.start, table.c.digest, table.c.size, table.c.inline, table.c.data).where(
        table.c.job == _NUMBER, is_listed(table.c.start, "starts")
    )


_NONE: ColumnElement[int] = literal_column("0")
ALL_INPUTS = 1 << 62
"""What `inputs_below` is once a job that has ended is read and forgotten but for its row."""
_NUMBER = select(_jobs.number).where(_jobs.job_id == bindparam("id")).scalar_subquery()
_JOB = select(
    *(_jobs[name] for name in ("state", "reason", "owner", "epoch", "total", "created_unix_s", "ended_unix_s")),
    *(_jobs[name] for name in ("nodes", "input_error", "consumed", "retried", "failed", "wasted_s")),
    _specs.spec,
).join(tables.job_specs, _specs.job == _jobs.number)
_ACTIVE: list[ColumnElement[str]] = [literal_column(f"'{state}'") for state in JobState if not state.is_final]
_HOW_MANY = bindparam("count", type_=BigInteger)
_LIST = _JOB.order_by(_jobs.number.desc()).limit(_HOW_MANY).offset(_NONE)

# No clock decides who lives (core/sessions): a session is over once somebody has ended it.
_LIVES = _sessions.ttl_s > literal_column("0.0")
_OWNER_LIVES = exists(select(_sessions.owner).where(_sessions.owner == _jobs.owner, _LIVES))
# (In words, since in an upsert SQLAlchemy would not take the leader's row for that of the statement.)
_LEADER_LIVES = and_(
    _leaders.until_unix_s > literal_column("0.0"),
    text("EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)"),
)
# Whoever has begun to lead since the statement began may have a session that it does not see.
_LEADER_IS_SEEN = text(
    "EXISTS (SELECT 1 FROM leaderships AS seen WHERE seen.role = leaderships.role "
    "AND seen.owner = leaderships.owner AND seen.term = leaderships.term)"
)
_BELOW_INDEX = (
    _results.job == bindparam("number"), _results.start < bindparam("below"), _results.stop <= bindparam("below")
)  # fmt: skip
_BELOW_SEQ = (_results.job == bindparam("number"), _results.seq < bindparam("below"))
_ONE_RESULT = (_results.job == bindparam("number"), _results.start == bindparam("old_start"))
_CUT = {
    name: cast(bindparam(f"new_{name}"), _results[name].type) for name in ("start", "stop", "failed_count", "failed")
}
_CHECKPOINT = upsert(tables.checkpoints).values({name: bindparam(name) for name in _names(tables.checkpoints)})
_NODE = upsert(tables.nodes).values({name: bindparam(name) for name in _names(tables.nodes)})


def _renewed() -> Any:
    """A new session begins where there is none, or where the old one was over, or with `anew` = 1. The stamp rises
    whatever the clock does."""
    step = _sessions.renewed_unix_s + literal_column("0.001")
    put = upsert(tables.sessions).values(
        owner=bindparam("owner"),
        epoch=literal_column("1"),
        renewed_unix_s=Now(),
        ttl_s=bindparam("ttl_s"),
        info=bindparam("info"),
    )
    return put.on_conflict_do_update(
        index_elements=["owner"],
        set_={
            "epoch": _sessions.epoch
            + case(
                (and_(_LIVES, bindparam("anew", type_=BigInteger) == literal_column("0")), literal_column("0")),
                else_=literal_column("1"),
            ),
            "renewed_unix_s": case(
                (put.excluded.renewed_unix_s > step, put.excluded.renewed_unix_s),
                else_=step,
            ),
            "ttl_s": put.excluded.ttl_s,
            "info": put.excluded.info,
        },
    )


def _led(alone: bool) -> Any:
    """Taken where nobody leads, kept where it is one's own: a term that ended, even one's own, is a new one. `alone`:
    whoever led before is gone."""
    put = upsert(tables.leaderships).values(
        role=bindparam("role"),
        owner=bindparam("owner"),
        term=literal_column("1"),
        until_unix_s=literal_column("1.0"),
    )
    return _prolonged(put, alone)


def _prolonged(put: Any, alone: bool = False) -> Any:
    fresh = literal_column("1") if alone else case((_LEADER_LIVES, literal_column("0")), else_=literal_column("1"))
    return put.on_conflict_do_update(
        index_elements=["role"],
        set_={
            "owner": put.excluded.owner,
            "term": _leaders.term + fresh,
            "until_unix_s": put.excluded.until_unix_s,
        },
        where=None if alone else or_(and_(~_LEADER_LIVES, _LEADER_IS_SEEN), _leaders.owner == put.excluded.owner),
    )


def _kept() -> Any:
    """renew_session, lead (which leaves the row alone while another leads), jobs_of_dead_owners and the sessions of
    others in one statement: one round trip, one commit."""
    owner = bindparam("owner", type_=String)
    renewed = _renewed().returning(_sessions.epoch).cte("renewed")
    led_by_another = exists(
        select(_leaders.owner).where(_leaders.role == bindparam("role"), _leaders.owner != owner, _LEADER_LIVES)
    )
    row = select(
        cast(bindparam("role", type_=String), String),
        cast(owner, String),
        cast(literal_column("1"), BigInteger),
        cast(literal_column("1.0"), Float),
    ).where(~led_by_another)
    put = upsert(tables.leaderships).from_select(["role", "owner", "term", "until_unix_s"], row)
    led = _prolonged(put).returning(_leaders.term).cte("led")
    orphans = [
        func.array(
            select(column)
            .where(_jobs.state.in_(_ACTIVE), ~_OWNER_LIVES, _jobs.owner != owner)
            .order_by(_jobs.number)
            .limit(_HOW_MANY)
            .scalar_subquery()
        )
        for column in (_jobs.job_id, _jobs.owner)
    ]
    others = [
        func.array(select(column).where(_LIVES, _sessions.owner != owner).order_by(_sessions.owner).scalar_subquery())
        for column in (_sessions.owner, _sessions.renewed_unix_s, _sessions.ttl_s, _sessions.info)
    ]
    return select(
        select(renewed.c.epoch).scalar_subquery(),
        select(led.c.term).scalar_subquery(),
        *orphans,
        *others,
    )


STATEMENTS: dict[str, ClauseElement] = {
    # ------------------------------------------------------------ the store as a whole
    "revision": select(tables.alembic_version.c.version_num),
    "pool_id": select(tables.meta.c.value).where(tables.meta.c.name == literal_column("'pool_id'")),
    "notes": select(tables.meta.c.name, tables.meta.c.value),
    "put_meta": _put(tables.meta),
    "drop_meta": delete(tables.meta).where(tables.meta.c.name == bindparam("note")),
    "raise_epochs": update(tables.jobs).values(epoch=_jobs.epoch + bindparam("by", type_=BigInteger)),
    "raise_terms": update(tables.leaderships).values(
        term=_leaders.term + bindparam("by", type_=BigInteger), until_unix_s=literal_column("0.0")
    ),
    "live_digests": union(
        select(_inputs.digest).where(text("NOT input_pages.inline")),
        select(_results.digest).where(text("NOT result_pages.inline")),
        select(_states.digest).where(text("NOT checkpoints.inline")),
        select(tables.job_blobs.c.digest),
    ),
    "live_among": union(
        select(_inputs.digest).where(text("NOT input_pages.inline"), is_listed(_inputs.digest, "digests")),
        select(_results.digest).where(text("NOT result_pages.inline"), is_listed(_results.digest, "digests")),
        select(_states.digest).where(text("NOT checkpoints.inline"), is_listed(_states.digest, "digests")),
        select(tables.job_blobs.c.digest).where(is_listed(tables.job_blobs.c.digest, "digests")),
    ),
    # ------------------------------------------------------------ jobs
    "owned": select(_jobs.job_id, _jobs.number, _jobs.epoch, _jobs.owner, _jobs.inputs_below)
    .where(is_listed(_jobs.job_id, "ids"))
    .order_by(_jobs.job_id)
    .with_for_update(),
    "create_job": insert(tables.jobs)
    .values({name: bindparam(name) for name in _names(tables.jobs) if name != "number"})
    .inline(),
    "number": select(_jobs.number).where(_jobs.job_id == bindparam("id")),
    "put_spec": _put(tables.job_specs),
    "put_job_blob": _put(tables.job_blobs),
    "set_job": update(tables.jobs)
    .where(_jobs.number == bindparam("job"))
    .values({name: func.coalesce(bindparam(f"new_{name}", type_=_jobs[name].type), _jobs[name]) for name in SETTABLE}),
    "set_inputs_below": update(tables.jobs)
    .where(_jobs.number == bindparam("job"))
    .values(inputs_below=bindparam("below")),
    "take_job": update(tables.jobs)
    .where(_jobs.job_id == bindparam("id"))
    .values(epoch=_jobs.epoch + literal_column("1"), owner=bindparam("new_owner")),
    "take_free_job": update(tables.jobs)
    .where(
        _jobs.job_id == bindparam("id"),
        or_(_jobs.owner == bindparam("same_owner"), ~_OWNER_LIVES),
    )
    .values(epoch=_jobs.epoch + literal_column("1"), owner=bindparam("new_owner")),
    "release_job": update(tables.jobs)
    .where(_jobs.job_id == bindparam("id"), _jobs.epoch == bindparam("held_epoch"))
    .values(epoch=_jobs.epoch + literal_column("1"), owner=bindparam("new_owner")),
    "owner_of": select(_jobs.owner, _jobs.epoch).where(_jobs.job_id == bindparam("id")),
    "lock_job": select(_jobs.owner, _jobs.epoch).where(_jobs.job_id == bindparam("id")).with_for_update(),
    "jobs_of_dead_owners": select(_jobs.job_id, _jobs.owner)
    .where(_jobs.state.in_(_ACTIVE), ~_OWNER_LIVES)
    .order_by(_jobs.number)
    .limit(_HOW_MANY)
    .offset(_NONE),
    "unread_of_dead_owners": select(_jobs.job_id)
    .where(
        _jobs.ended_unix_s > bindparam("after", type_=Float),
        _jobs.inputs_below < literal_column(str(ALL_INPUTS)),
        ~_OWNER_LIVES,
    )
    .order_by(_jobs.number.desc())
    .limit(_HOW_MANY)
    .offset(_NONE),
    "delete_job": delete(tables.jobs).where(_jobs.number == bindparam("job")),
    "get_job": _JOB.where(_jobs.job_id == bindparam("id")),
    "list_jobs": _LIST,
    "list_active_jobs": _LIST.where(_jobs.state.in_(_ACTIVE)),
    "find_by_id": select(_jobs.job_id).where(_jobs.job_id == bindparam("text")),
    "find_by_name": select(_jobs.job_id)
    .where(_jobs.name == bindparam("text"))
    .order_by(_jobs.number.desc())
    .limit(literal_column("1"))
    .offset(_NONE),
    "find_by_prefix": select(_jobs.job_id)
    .where(_jobs.job_id >= bindparam("text"), _jobs.job_id < bindparam("after"))
    .limit(literal_column("2"))
    .offset(_NONE),
    # ------------------------------------------------------------ pages
    "put_input": _put(tables.input_pages),
    "put_result": _put(tables.result_pages),
    "input_index": select(_inputs.start, _inputs.stop, _inputs.digest, _inputs.size, _inputs.inline)
    .where(_inputs.job == _NUMBER)
    .order_by(_inputs.start),
    "inputs_stop": select(_inputs.stop)
    .where(_inputs.job == _NUMBER)
    .order_by(_inputs.start.desc())
    .limit(literal_column("1"))
    .offset(_NONE),
    "result_index": select(
        *(_results[name] for name in ("seq", "start", "stop", "page_start", "digest", "size", "inline")),
        *(_results[name] for name in ("failed_count", "failed", "fault", "node")),
    )
    .where(_results.job == _NUMBER)
    .order_by(_results.seq, _results.start),
    "read_input": _read(tables.input_pages),
    "read_results": _read(tables.result_pages),
    "drop_inputs": delete(tables.input_pages).where(
        _inputs.job == bindparam("number"), _inputs.start < bindparam("below"), _inputs.stop <= bindparam("below")
    ),
    "results_below": select(_results.start, _results.stop).where(*_BELOW_INDEX),
    "drop_results_below": delete(tables.result_pages).where(*_BELOW_INDEX),
    "results_below_seq": select(_results.start, _results.stop).where(*_BELOW_SEQ),
    "drop_results_below_seq": delete(tables.result_pages).where(*_BELOW_SEQ),
    "results_near": _near(tables.result_pages, _results.start, _results.stop, _results.failed_count, _results.failed),
    "copy_result": insert(tables.result_pages).from_select(
        [column.name for column in tables.result_pages.columns],
        select(*(_CUT.get(column.name, column) for column in tables.result_pages.columns)).where(*_ONE_RESULT),
    ),
    "cut_result": update(tables.result_pages).where(*_ONE_RESULT).values(_CUT),
    "remove_result": delete(tables.result_pages).where(*_ONE_RESULT),
    # ------------------------------------------------------------ what is done though its page was dropped
    "done_intervals": select(_done.start, _done.stop).where(_done.job == _NUMBER).order_by(_done.start),
    "done_near": _near(tables.done_intervals, _done.start, _done.stop),
    "add_done": insert(tables.done_intervals).values({name: bindparam(name) for name in _names(tables.done_intervals)}),
    "remove_done": delete(tables.done_intervals).where(
        _done.job == bindparam("number"), _done.start == bindparam("old_start")
    ),
    # ------------------------------------------------------------ what tasks save of their state
    "put_checkpoint": _CHECKPOINT.on_conflict_do_update(
        index_elements=["job", "task"],
        set_={name: _CHECKPOINT.excluded[name] for name in ("digest", "size", "inline", "data")},
    ),
    "drop_checkpoints": delete(tables.checkpoints).where(
        _states.job == bindparam("number"), _states.task >= bindparam("low"), _states.task < bindparam("high")
    ),
    "checkpoints": select(_states.task, _states.digest, _states.size, _states.inline, _states.data)
    .where(_states.job == _NUMBER)
    .order_by(_states.task),
    # ------------------------------------------------------------ logs and nodes
    "put_log": _put(tables.logs),
    "drop_logs": delete(tables.logs).where(
        _logs.job == bindparam("number"),
        _logs.seq
        <= select(_logs.seq)
        .where(_logs.job == bindparam("number"))
        .order_by(_logs.seq.desc())
        .limit(literal_column("1"))
        .offset(bindparam("keep", type_=BigInteger))
        .scalar_subquery(),
    ),
    "read_logs": select(_logs.seq, _logs.line)
    .where(_logs.job == _NUMBER, _logs.seq > bindparam("after"))
    .order_by(_logs.seq)
    .limit(_HOW_MANY)
    .offset(_NONE),
    "put_node": _NODE.on_conflict_do_update(
        index_elements=["node_id"], set_={name: _NODE.excluded[name] for name in ("spec", "unix_s", "state")}
    ),
    # ------------------------------------------------------------ coordinators
    "renew_session": _renewed(),
    "session": select(_sessions.epoch).where(_sessions.owner == bindparam("owner")),
    "sessions": select(_sessions.owner, _sessions.renewed_unix_s, _sessions.ttl_s, _sessions.info)
    .where(_LIVES)
    .order_by(_sessions.owner),
    "end_session": update(tables.sessions)
    .where(_sessions.owner == bindparam("ended_owner"))
    .values(ttl_s=literal_column("-1.0")),
    "end_silent": update(tables.sessions)
    .where(
        _sessions.owner == bindparam("ended_owner"),
        _sessions.renewed_unix_s == bindparam("stamp", type_=Float),
        _LIVES,
    )
    .values(ttl_s=literal_column("-1.0")),
    "forget_sessions": delete(tables.sessions).where(
        _sessions.renewed_unix_s + bindparam("kept_s", type_=Float) < Now(), ~_LIVES
    ),
    "lead": _led(alone=False),
    "lead_alone": _led(alone=True),
    "leader": select(_leaders.owner, _leaders.term).where(_leaders.role == bindparam("role")),
    "end_leadership": update(tables.leaderships)
    .where(_leaders.owner == bindparam("ended_owner"))
    .values(until_unix_s=literal_column("0.0")),
    "list_nodes": select(tables.nodes.c.spec, tables.nodes.c.unix_s, tables.nodes.c.state).order_by(
        tables.nodes.c.node_id
    ),
}

ONLY_POSTGRESQL: dict[str, ClauseElement] = {"keep_session": _kept()}
"""What SQLite has no words for."""
