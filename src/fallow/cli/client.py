"""Questions that the program asks a pool: find it, connect, ask, and every failure in words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fallow.model.errors import JobNotFound, PoolRefused, PoolUnreachable, SettingError
from fallow.model.ids import JobId
from fallow.model.job import JobInfo
from fallow.model.node import NodeInfo
from fallow.wire import messages as m
from fallow.wire import subjects
from fallow.wire.address import PoolAddress, connected_address, parse_address, running_pool
from fallow.wire.connection import PING_OFTEN_S, Connection, connect
from fallow.wire.repeats import AGAIN_S

T = TypeVar("T")
Reply = TypeVar("Reply", bound=m.Msg)

PATIENCE_S = 15.0
"""How long a question is asked again while no coordinator answers (one that was killed starts again meanwhile)."""
ATTEMPT_S = 1.5
"""After so long without an answer the question is a new one (it is repeated to others before)."""


def find_address() -> PoolAddress:
    """The pool of this user: FALLOW_URL, what `fallow connect` remembered, or the one that runs here.

    Raises PoolUnreachable in words when there is none."""
    if text := os.environ.get("FALLOW_URL", "").strip():
        return parse_address(text, "FALLOW_URL")
    if text := connected_address() or "":
        return parse_address(text)
    pool = running_pool()
    if pool:
        return parse_address(pool.address)
    raise PoolUnreachable(
        "no pool is known here. Start one with `fallow up`, or name one with `fallow connect TOKEN@HOST:PORT` "
        "or FALLOW_URL."
    )


class PoolClient:
    """A connection to ask with."""

    def __init__(self, connection: Connection, address: PoolAddress) -> None:
        self.connection = connection
        self.address = address

    async def ask(self, subject: str, message: m.Msg, expected: type[Reply], patience_s: float = 0.0) -> Reply:
        """One answer of that type. Raises PoolRefused, JobNotFound, or PoolUnreachable when nobody answers for
        `patience_s` (0: PATIENCE_S)."""
        deadline = time.monotonic() + (patience_s or PATIENCE_S)
        while True:
            try:
                reply = await self.connection.request(subject, message, ATTEMPT_S, AGAIN_S)
            except TimeoutError:
                reply = None
            if isinstance(reply, expected):
                return reply
            if isinstance(reply, m.Refused) and reply.kind not in ("not_owner", "overloaded"):
                if reply.kind == "not_found":
                    raise JobNotFound(reply.message)
                raise PoolRefused(reply.message, reply.kind)
            if time.monotonic() > deadline:
                if isinstance(reply, m.Refused):
                    raise PoolRefused(reply.message, reply.kind)
                raise PoolUnreachable(
                    f"the server at {self.address.public} is there, but no coordinator answers: none runs, or their "
                    "store is away. Their logs say it (pool/coordinator.log or coordinators/NAME/coordinator.log in "
                    "their home), and so does /readyz where --health was given."
                )
            await asyncio.sleep(max(0.1, reply.retry_after_s if isinstance(reply, m.Refused) else 0.0))

    async def pool(self) -> m.PoolInfo:
        return await self.ask(subjects.POOL, m.GetPool(), m.PoolInfo)

    async def jobs(self, limit: int = 100, active_only: bool = False) -> tuple[JobInfo, ...]:
        return (await self.ask(subjects.POOL, m.ListJobs(limit=limit, active_only=active_only), m.Jobs)).jobs

    async def nodes(self) -> tuple[NodeInfo, ...]:
        return (await self.ask(subjects.POOL, m.ListNodes(), m.Nodes)).nodes

    async def coordinators(self) -> tuple[m.CoordinatorInfo, ...]:
        return (await self.ask(subjects.POOL, m.ListCoordinators(), m.Coordinators)).coordinators

    async def drain_coordinator(self, name: str) -> None:
        """Raises PoolRefused or JobNotFound in words."""
        await self.ask(subjects.POOL, m.DrainCoordinator(name), m.Done)

    async def find_job(self, text: str) -> JobInfo:
        """By id, unique prefix of an id, or name. Raises JobNotFound."""
        return (await self.ask(subjects.POOL, m.FindJob(text=text), m.JobStatus)).info

    async def cancel(self, job_id: JobId, reason: str) -> None:
        await self.ask(subjects.job(job_id), m.CancelJob(job_id=job_id, reason=reason), m.Done)

    async def logs(self, job_id: JobId, after_seq: int, limit: int) -> tuple[m.LogLine, ...]:
        reply = await self.ask(
            subjects.job(job_id), m.GetLogs(job_id=job_id, after_seq=after_seq, limit=limit), m.LogLines
        )
        return reply.lines

    async def find_node(self, text: str) -> NodeInfo:
        """By id, unique prefix of an id, or unique name. Raises SettingError in words."""
        nodes = await self.nodes()
        matching = [node for node in nodes if node.spec.name == text or node.spec.node_id.startswith(text)]
        exact = [node for node in matching if node.spec.node_id == text]
        found = exact or matching
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(node.spec.node_id for node in found)
            raise SettingError(f"{len(found)} nodes match {text!r} ({ids}). Give the id.")
        raise SettingError(f"no node matches {text!r}. `fallow nodes` lists them.")

    async def order_node(self, node: NodeInfo, order: str) -> None:
        await self.ask(subjects.POOL, m.NodeControl(node_id=node.spec.node_id, order=order), m.Done)


def ask_pool(question: Callable[[PoolClient], Awaitable[T]], address: PoolAddress | None = None) -> T:
    """Connect, run the question, disconnect. Raises PoolError and JobError in words."""
    target = address or find_address()

    async def run() -> T:
        connection = await connect(target, "fallow program", ping_every_s=PING_OFTEN_S)
        try:
            return await question(PoolClient(connection, target))
        finally:
            await connection.close()

    return asyncio.run(run())
