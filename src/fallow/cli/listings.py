"""What `fallow jobs`, `nodes`, `status`, `logs`, `cancel` and `drain` print."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque

from fallow.cli.client import PoolClient, ask_pool, find_address
from fallow.cli.show import as_plain, bytes_words, count_words, counted, duration_words, print_json, print_table
from fallow.core.terminal import harmless
from fallow.model.errors import JobCancelled, JobError, PoolUnreachable, SettingError
from fallow.model.job import JobInfo, JobKind
from fallow.model.node import NodeInfo
from fallow.model.states import JobState, NodeState
from fallow.wire.messages import CoordinatorInfo, LogLine, PoolInfo
from fallow.wire.server_sight import look_at_servers, sight_words

LOG_PAGE = 1000
FOLLOW_EVERY_S = 0.5


def tasks_words(job: JobInfo) -> str:
    """'120/1000', or '120' while the number of inputs is unknown."""
    if job.kind == JobKind.CALLS:
        return counted(job.counts.done, "call")
    return f"{job.counts.done}/{job.total}" if job.total >= 0 else f"{job.counts.done}/{job.counts.inputs}+"


def done_words(job: JobInfo) -> str:
    """'120/1000 tasks done', '3 calls done'."""
    return f"{tasks_words(job)} {'' if job.kind == JobKind.CALLS else 'tasks '}done"


def is_active(job: JobInfo) -> bool:
    return not JobState(job.state).is_final


# ---------------------------------------------------------------- jobs


def show_jobs(limit: int, active_only: bool, as_json: bool) -> None:
    jobs = ask_pool(lambda pool: pool.jobs(limit, active_only))
    if as_json:
        print_json(as_plain(jobs))
        return
    now = time.time()
    rows = []
    for job in jobs:
        lasted = (job.ended_unix_s or now) - job.created_unix_s
        rows.append(
            (
                job.job_id,
                job.name,
                job.state + (" (kept)" if job.detached else ""),
                tasks_words(job),
                str(job.counts.failed),
                str(job.slots),
                duration_words(now - job.created_unix_s) + " ago",
                duration_words(lasted),
            )
        )
    columns = ("JOB", "NAME", "STATE", "TASKS", "FAILED", "SLOTS", "SUBMITTED", "LASTED")
    print_table(columns, rows, "no active jobs." if active_only else "no jobs yet.")


def show_job(text: str, as_json: bool) -> None:
    job = ask_pool(lambda pool: pool.find_job(text))
    if as_json:
        print_json(as_plain(job))
        return
    counts = job.counts
    lasted = duration_words((job.ended_unix_s or time.time()) - job.created_unix_s)
    print(f"{job.job_id}  {harmless(job.name)}")
    print(f"  state     {job.state}" + (f": {harmless(job.reason)}" if job.reason else ""))
    print(f"  tasks     {tasks_words(job)} done, {counts.failed} failed, {counts.running} running")
    print(
        f"  again     {counts.retried} run again, {counted(counts.worker_deaths, 'worker')} died, "
        f"{counted(counts.node_losses, 'node')} lost"
        + (f", {duration_words(counts.wasted_s)} lost to owners who came back" if counts.wasted_s else "")
    )
    print(f"  time      {lasted}" + (f", on {counted(job.slots, 'slot')} now" if is_active(job) else ""))
    print(f"  results   {'kept until deleted (detached)' if job.detached else 'for the script that submitted it'}")
    for name, done in sorted(job.nodes.items(), key=lambda item: -item[1]):
        print(f"  node      {harmless(name)}: {counted(done, 'task')}")


def cancel_jobs(texts: list[str], reason: str, as_json: bool) -> int:
    """Cancel each. Jobs that ended already are said so and do not count as failures."""

    async def cancel_one(pool: PoolClient, text: str) -> tuple[str, JobInfo, bool]:
        job = await pool.find_job(text)
        if not is_active(job):
            return text, job, False
        await pool.cancel(job.job_id, reason)
        return text, await pool.find_job(job.job_id), True

    async def cancel_all(pool: PoolClient) -> list[tuple[str, JobInfo, bool] | tuple[str, JobError]]:
        done: list[tuple[str, JobInfo, bool] | tuple[str, JobError]] = []
        for text in texts:
            try:
                done.append(await cancel_one(pool, text))
            except JobCancelled:
                continue
            except JobError as error:
                done.append((text, error))
        return done

    outcomes = ask_pool(cancel_all)
    failed = 0
    for outcome in outcomes:
        if len(outcome) == 2:
            failed += 1
            print(f"fallow: {outcome[1]}", file=sys.stderr)
        elif not as_json:
            _, job, was_active = outcome
            verb = "cancelled" if was_active else f"has ended already ({job.state})"
            print(f"{job.job_id} ({job.name}) {verb}; {done_words(job)}.")
    if as_json:
        print_json([as_plain(outcome[1]) for outcome in outcomes if len(outcome) == 3])
    return 1 if failed else 0


# ---------------------------------------------------------------- logs


def show_logs(text: str, follow: bool, limit: int, as_json: bool) -> None:
    """The kept output of a job's tasks, and with `follow` what comes until the job has ended."""

    async def run(pool: PoolClient) -> None:
        job = await pool.find_job(text)
        kept: deque[LogLine] = deque(maxlen=limit or None)
        last = 0
        while lines := await pool.logs(job.job_id, last, LOG_PAGE):
            last = lines[-1].seq
            kept.extend(lines)
        for line in kept:
            _print_line(line, as_json)
        while follow:
            # Asked before the lines are, so that none that came before the end is missed.
            ended = not is_active(await pool.find_job(job.job_id))
            while lines := await pool.logs(job.job_id, last, LOG_PAGE):
                last = lines[-1].seq
                for line in lines:
                    _print_line(line, as_json)
            if ended:
                return
            await asyncio.sleep(FOLLOW_EVERY_S)

    ask_pool(run)


def _print_line(line: LogLine, as_json: bool) -> None:
    if as_json:
        import json

        fields = {name: getattr(line, name) for name in LogLine.__struct_fields__}
        print(json.dumps(fields), flush=True)
        return
    label = f"[{line.node} {line.index}]" if line.index >= 0 else f"[{line.node}]"
    mark = "!" if line.stream == "stderr" else ""
    print(f"{label}{mark} {harmless(line.text)}", flush=True)


# ---------------------------------------------------------------- nodes and the pool


def _node_words(node: NodeInfo) -> str:
    """Its state, why nothing runs on it, and what was lost when its owner came back."""
    words = f"{node.state}: paused ({node.paused})" if node.paused else node.state
    return f"{words}, {duration_words(node.wasted_s)} lost to its owner's return" if node.wasted_s else words


def show_nodes(all_nodes: bool, as_json: bool) -> None:
    nodes = ask_pool(lambda pool: pool.nodes())
    shown = [node for node in nodes if all_nodes or node.state in (NodeState.ALIVE, NodeState.DRAINING)]
    if as_json:
        print_json(as_plain(shown))
        return
    rows = []
    for node in shown:
        spec = node.spec
        gpus = ", ".join(f"{device.model} (out)" if device.fault else device.model for device in spec.devices)
        rows.append(
            (
                spec.name,
                spec.node_id,
                _node_words(node),
                f"{node.busy_slots}/{spec.slots}",
                f"{node.load:.2f}",
                f"{bytes_words(node.memory_used_bytes)} of {bytes_words(spec.memory_bytes)}",
                count_words(node.tasks_done),
                " ".join(spec.pythons),
                gpus or "-",
                f"{spec.speed:.2f}" if spec.speed else "-",
                duration_words(time.time() - node.seen_unix_s) + " ago",
            )
        )
    columns = ("NAME", "NODE", "STATE", "BUSY", "LOAD", "MEMORY", "TASKS", "PYTHON", "GPU", "SPEED", "SEEN")
    print_table(columns, rows, "no nodes. On a machine that shall work for this pool: `fallow join TOKEN@HOST:PORT`.")


def order_node(text: str, order: str, as_json: bool) -> None:
    async def run(pool: PoolClient) -> NodeInfo:
        node = await pool.find_node(text)
        await pool.order_node(node, order)
        return node

    node = ask_pool(run)
    if as_json:
        print_json({"node_id": node.spec.node_id, "name": node.spec.name, "order": order})
    elif order == "drain":
        print(f"{node.spec.name} finishes what it runs and takes no more. `fallow resume {node.spec.name}` undoes it.")
    else:
        print(f"{node.spec.name} takes work again.")


def drain_anything(text: str, as_json: bool) -> None:
    """Take a node or a coordinator out, whichever has that name."""

    async def run(pool: PoolClient) -> bool:
        coordinators = await pool.coordinators()
        if not any(text in (info.name, info.owner) for info in coordinators):
            return False
        if any(node.spec.name == text for node in await pool.nodes()):
            # `fallow up` calls both after the machine, and its coordinator is the pool's only one.
            if len(coordinators) == 1:
                return False
            raise SettingError(f"a node and a coordinator are called {text!r}: give the node's id or the coordinator's")
        await pool.drain_coordinator(text)
        return True

    if not ask_pool(run):
        order_node(text, "drain", as_json)
    elif as_json:
        print_json({"coordinator": text, "order": "drain"})
    else:
        print(f"The coordinator {text} hands its jobs to the others and ends.")


def show_status(as_json: bool) -> None:
    async def run(
        pool: PoolClient,
    ) -> tuple[PoolInfo, tuple[NodeInfo, ...], tuple[JobInfo, ...], tuple[CoordinatorInfo, ...]]:
        coordinators = await pool.coordinators()
        return await pool.pool(), await pool.nodes(), await pool.jobs(1000, True), coordinators

    target = find_address()
    address = target.public
    several = len(target.servers) > 1
    try:
        pool, nodes, jobs, coordinators = ask_pool(run, target)
    except PoolUnreachable:
        for words in sight_words(look_at_servers(target)) if several else ():
            print(f"fallow: {words}", file=sys.stderr)
        raise
    servers = look_at_servers(target) if several else ()
    alive = [node for node in nodes if node.state in (NodeState.ALIVE, NodeState.DRAINING)]
    slots = sum(node.spec.slots for node in alive)
    busy = sum(node.busy_slots for node in alive)
    if as_json:
        print_json(
            {
                "pool_id": pool.pool_id,
                "name": pool.name,
                "version": pool.version,
                "address": address,
                "nodes": len(alive),
                "slots": slots,
                "busy_slots": busy,
                "active_jobs": len(jobs),
                "coordinators": [
                    {
                        "name": info.name,
                        "owner": info.owner,
                        "jobs": info.jobs,
                        "leads": info.leads,
                        "seen_s": info.seen_s,
                    }
                    for info in coordinators
                ],
                "servers": [{"server": one.server, "trouble": one.trouble, "sees": list(one.sees)} for one in servers],
            }
        )
        return
    print(f"pool   {pool.name} ({pool.pool_id}) at {address}, Fallow {pool.version}")
    print(f"nodes  {len(alive)} with {slots} slots, {busy} busy")
    if len(coordinators) > 1:
        shown = ", ".join(
            f"{info.name} ({info.jobs} job{'' if info.jobs == 1 else 's'}{', leads' if info.leads else ''})"
            for info in coordinators
        )
        print(f"coordinators  {shown}")
    wrong = sight_words(servers)
    if servers and not wrong:
        print(f"servers  {len(servers)}, which see each other")
    for words in wrong:
        print(f"servers  {words}")
    print(f"jobs   {len(jobs)} active")
    for job in jobs[:10]:
        print(f"       {job.job_id}  {job.name}  {tasks_words(job)}")
