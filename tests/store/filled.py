"""A store with something in every table."""

from __future__ import annotations

from fallow.model.ids import JobId, PoolId
from fallow.store.protocol import (
    AppendLogs,
    CreateJob,
    DropInputPages,
    DropResultPages,
    PutNode,
    SetJob,
    Store,
)
from tests.store.conformance import everything, give, job_id, node, put, spec, stored


def fill(store: Store, count: int = 3) -> list[JobId]:
    store.pool_id(PoolId("pool-filled"))
    jobs = [job_id() for _ in range(count)]
    for job in jobs:
        store.commit([CreateJob(spec(job, function=stored("a")), "me", 1.5)])
        store.commit([give(job, at, at + 10) for at in range(0, 200, 10)])
        store.commit([give(job, 200, 210, page=stored("b"))])
        store.commit([put(job, at, at, at + 1, failed_count=1, failed=(at,)) for at in range(20)])
        fault = ("node_lost", "the node went away", "detail")
        store.commit([put(job, 20, 20, 21, failed_count=1, failed=(20,), fault=fault)])
        store.commit([DropInputPages(job, 1, 20), DropResultPages(job, 1, below=5)])
        store.commit([AppendLogs(job, 1, ((1, b"a line"), (2, b"\x00\xff")), 10)])
        store.commit([SetJob(job, 1, reason="because", nodes={"n1": 4}, total=210)])
    store.commit([PutNode(node("a"), 2.5, "alive")])
    store.acquire_leadership("me")
    return jobs


def all_of(store: Store, jobs: list[JobId]) -> object:
    """All that can be read."""
    return (
        [everything(store, job) for job in jobs],
        store.list_nodes(),
        store.list_jobs(100, False),
        sorted(store.live_digests()),
        store.pool_id(PoolId("pool-other")),
    )
