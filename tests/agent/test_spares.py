"""Sandboxes in reserve, in a real sandbox, with a real environment."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes need Linux", allow_module_level=True)

from fallow.agent.confined import Confinement
from fallow.agent.environments import Environments
from fallow.agent.worker_process import Process
from fallow.agent.workers import WorkerKind, Workers
from fallow.model.job import EnvSpec
from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.protocol import Limits
from tests.worker.harness import Recorder

WITHIN_S = 60.0


async def until(workers: Workers, pythons: set[str]) -> None:
    """These have a spare, and no others."""
    assert workers._spares is not None
    async with asyncio.timeout(WITHIN_S):
        while set(workers._spares.pythons) != pythons:
            await asyncio.sleep(0.01)


async def start(workers: Workers, python: str, tenant: str) -> int:
    """Of the zygote that forked the worker."""
    worker = await workers.start(WorkerKind(python, tenant=tenant), 0, Recorder(), {})
    assert isinstance(worker, Process)
    return worker._zygote.pid


@pytest.mark.slow
async def test_an_environment_that_was_used_has_a_spare_and_jobs_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = BubblewrapSandbox()
    if not sandbox.probe().works:
        pytest.skip(f"no sandbox here: {sandbox.probe().words} {sandbox.probe().remedy}")
    python = await Environments(tmp_path / "environments", lambda: {}).ensure(EnvSpec(requirements=("six",)))
    workers = Workers(tmp_path / "scratch", Confinement(sandbox, Limits()))
    try:
        await start(workers, python, "job-1")
        await until(workers, {python})
        assert workers._spares is not None
        spare = (await workers._spares._tasks[python][0]).pid
        assert await start(workers, python, "job-2") == spare, "what was in reserve is used"
        await until(workers, {python})

        # Built anew at the same place: what the spare sees is no more.
        spare = (await workers._spares._tasks[python][0]).pid
        settings = Path(python).parent.parent / "pyvenv.cfg"
        settings.write_text(settings.read_text())
        assert await start(workers, python, "job-3") != spare
        await until(workers, {python})

        monkeypatch.setattr("fallow.core.spares.IDLE_S", 0.0)
        spare = (await workers._spares._tasks[python][0]).pid
        await workers.sweep(None)
        await until(workers, set())
        async with asyncio.timeout(WITHIN_S):
            while os.path.exists(f"/proc/{spare}"):
                await asyncio.sleep(0.01)
    finally:
        await workers.close()
