"""What a node does beside its work: which Pythons there are, how fast the machine is, which sandboxes are to go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fallow.agent.devices.found import late_devices
from fallow.agent.leases import jobs_in_use
from fallow.agent.modules import prune_modules
from fallow.agent.probe import disk_free_bytes, find_pythons, own_python
from fallow.model.ids import JobId

if TYPE_CHECKING:
    from fallow.agent.node import Node

HOUSEKEEPING_AFTER_S = 3.0
BUSY_WAIT_S = 60.0
"""Other Pythons are looked for once no slot belongs to a job, but no later than that: jobs may wait for one."""
BUSY_LOOK_S = 2.0
MEASURE_EVERY_S = 3600.0
MEASURE_WAIT_S = 10.0
MEASURE_AT_LAST_S = 600.0
"""After so long it is done between two tasks of a job that does not end, and beside whatever else runs."""
MEASURE_LOAD_PERCENT = 25.0
"""Of all processors: where other programs used more of late, the machine would look slower than it is."""


def end_sandboxes(node: Node) -> None:
    """Those of jobs that have ended go at once, whatever still runs in them."""
    live = jobs_in_use(node.slots)
    for slot in node.slots:
        for lane in slot.lanes.values():
            lane.release_other_tenants(live)
            if lane.tenant:
                live.add(JobId(lane.tenant))
    node.workers.end_tenants(live)


async def keep_house(node: Node, home: Path) -> None:
    """Runs until it is cancelled; an embedded pool's node is not worth more than the first steps."""
    late = await late_devices(node.gpu_settings, node.spec.memory_bytes)
    if late:
        node.gpus.add(late)
        node.offer(msgspec.structs.replace(node.spec, devices=node.gpus.devices))
    await asyncio.sleep(HOUSEKEEPING_AFTER_S)
    await asyncio.to_thread(prune_modules, home / "modules")
    if node.embedded:
        return
    for _ in range(int(BUSY_WAIT_S / BUSY_LOOK_S)):
        if not node.is_at_work:  # (between two single calls nothing runs either)
            break
        await asyncio.sleep(BUSY_LOOK_S)
    await seek_pythons(node, home)
    while True:
        await _measure(node, home)
        await asyncio.sleep(MEASURE_EVERY_S)


async def seek_pythons(node: Node, home: Path) -> None:
    """Offer the Pythons of this machine, and say that these are all."""
    node.pythons.update(await find_pythons())
    others = sorted(version for version in node.pythons if version != own_python())
    spec = msgspec.structs.replace(node.spec, pythons=(own_python(), *others), seeks_pythons=False)
    node.offer(msgspec.structs.replace(spec, disk_free_bytes=disk_free_bytes(home)) if others else spec)


def may_measure(waited_s: float, is_at_work: bool, is_busy: bool, load_percent: float) -> bool:
    """Whether a machine that is waited for so long shows by now how fast it is. is_at_work: a slot belongs to a job.
    is_busy: a task runs. load_percent: of all processors, used by any program of late."""
    if waited_s < MEASURE_AT_LAST_S:
        return not is_at_work and load_percent <= MEASURE_LOAD_PERCENT
    return not is_busy


async def _measure(node: Node, home: Path) -> None:
    """Measure this machine once nothing runs on it; what was measured of late counts."""
    import psutil

    from fallow.agent.devices.benchmark import kept_scores, measured

    began_s = time.monotonic()
    psutil.cpu_percent()  # the next one tells of the time since this one
    while kept_scores(home, node.spec, time.time()) is None:
        await asyncio.sleep(MEASURE_WAIT_S)
        if may_measure(time.monotonic() - began_s, node.is_at_work, node.is_busy, psutil.cpu_percent()):
            break
    scores = await measured(home, node.spec)
    if scores is not None and scores.speed != node.spec.speed:
        node.gpus.set_speeds(scores.gpus)
        node.offer(msgspec.structs.replace(node.spec, speed=scores.speed, devices=node.gpus.devices))
