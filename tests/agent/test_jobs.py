"""What jobs bring along: environments, own modules, large pages; and jobs that cannot run here."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import blake3
import msgspec
import psutil
import pytest

from fallow.model.ids import Digest
from fallow.model.job import Blob, EnvSpec, Resources
from fallow.model.parts import InputPage
from fallow.wire.blob_files import BlobFiles
from fallow.wire.messages import BeatAck
from fallow.wire.page import decode_page, encode_inputs
from tests.agent.owner import Agent, Owner, given_back, spec, values

StartAgent = Callable[..., Agent]


def double(x: int) -> int:
    return 2 * x


def grow(data: bytes) -> bytes:
    return data + b"!"


def version(name: str) -> str:
    import importlib

    return str(importlib.import_module(name).__version__)


def from_own_module(x: int) -> int:
    import module_of_the_job  # type: ignore[import-not-found]

    return int(module_of_the_job.triple(x))


def threads(_x: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def local_store(owner: Owner, folder: Path) -> BlobFiles:
    """Have the pool's blobs in this folder, which agents of this machine find out."""
    files = BlobFiles(folder)
    files.prepare()
    nonce = hashlib.sha256(b"nonce").hexdigest()[:32]
    (folder / f".fallow-{nonce}").write_text(nonce)
    owner.pool = msgspec.structs.replace(owner.pool, blob_dir=str(folder), blob_nonce=nonce)
    return files


async def test_large_pages_travel_through_the_blob_store(owner: Owner, start_agent: StartAgent, tmp_path: Path) -> None:
    files = local_store(owner, tmp_path / "blobs")
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(grow))
    digest, size = files.write([memoryview(part) for part in encode_inputs([b"x" * 1_000_000])])
    pull = await owner.pull()
    lease = owner.lease(pull, (1, 1), [b""])
    await owner.ended((1, 1))
    large = InputPage(1, 2, Blob(Digest(digest), size))
    pull = await owner.pull()
    message = msgspec.structs.replace(lease, token=(1, 2), start=1, stop=2, pages=(large,), pull_seq=pull.seq)
    owner.connection.send(f"fw.node.{node}", message)
    [hand_in] = await owner.ended((1, 2))
    [result] = hand_in.results
    assert result.page.data is None
    path = files.find(result.page.digest, result.page.size)
    assert path is not None
    data = path.read_bytes()
    assert blake3.blake3(data).hexdigest() == result.page.digest
    assert decode_page(data)[0] == b"x" * 1_000_000 + b"!"


@pytest.mark.slow
async def test_a_lease_whose_inputs_are_gone_comes_back(owner: Owner, start_agent: StartAgent, tmp_path: Path) -> None:
    local_store(owner, tmp_path / "blobs")
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(grow))
    pull = await owner.pull()
    lease = owner.lease(pull, (1, 1), [b""])
    await owner.ended((1, 1))
    pull = await owner.pull()
    missing = InputPage(1, 3, Blob(Digest("ab" * 32), 1_000_000))
    message = msgspec.structs.replace(lease, token=(1, 2), start=1, stop=3, pages=(missing,), pull_seq=pull.seq)
    owner.connection.send(f"fw.node.{node}", message)
    assert given_back(await owner.ended((1, 2))) == {1, 2}


async def test_own_modules_of_the_customer_can_be_imported(owner: Owner, start_agent: StartAgent) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("module_of_the_job.py", "def triple(x):\n    return 3 * x\n")
    data = buffer.getvalue()
    start_agent()
    node = await owner.node()
    modules = Blob(Digest(blake3.blake3(data).hexdigest()), len(data), data)
    owner.assign(node, 0, spec(from_own_module, env=EnvSpec(modules=modules)))
    owner.lease(await owner.pull(), (1, 1), [1, 2])
    assert values(await owner.ended((1, 1))) == {0: 3, 1: 6}
    # The next job has no such modules, and a worker that has never seen them.
    owner.assign(node, 0, spec(from_own_module, "job-bbbbbb"))
    owner.lease(await owner.pull(job_id=spec(double, "job-bbbbbb").job_id), (9, 1), [1])
    [hand_in] = await owner.ended((9, 1))
    assert hand_in.results[0].failed == (0,)


@pytest.mark.slow
async def test_an_environment_is_built_for_a_job(owner: Owner, start_agent: StartAgent) -> None:
    start_agent(slots=2)
    node = await owner.node()
    job = spec(version, env=EnvSpec(requirements=("six==1.16.0",)))
    for slot in (0, 1):
        owner.assign(node, slot, job)
    for slot in (0, 1):
        owner.lease(await owner.pull(slot), (1, slot + 1), ["six"], start=slot)
    assert values([*await owner.ended((1, 1)), *await owner.ended((1, 2))]) == {0: "1.16.0", 1: "1.16.0"}


@pytest.mark.slow
async def test_an_environment_that_cannot_be_built_refuses_the_job_in_uvs_words(
    owner: Owner, start_agent: StartAgent
) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(version, env=EnvSpec(requirements=("no-such-package-of-fallow-tests==1",))))
    await owner.until("the refusal", lambda: owner.refusals)
    refusal = owner.refusals[0]
    assert refusal.fatal
    assert refusal.kind == "environment"
    assert "no-such-package-of-fallow-tests" in refusal.message
    # The slot is free for other jobs.
    owner.assign(node, 0, spec(double, "job-bbbbbb"))
    owner.lease(await owner.pull(), (1, 1), [4])
    assert values(await owner.ended((1, 1))) == {0: 8}


async def test_a_python_that_is_not_here_leaves_the_job_to_others(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(double, env=EnvSpec(python="2.7")))
    await owner.until("the refusal", lambda: owner.refusals)
    assert not owner.refusals[0].fatal
    assert owner.refusals[0].kind == "python"


async def test_a_job_of_several_cpus_has_as_many_threads(owner: Owner, start_agent: StartAgent) -> None:
    start_agent(slots=2)
    node = await owner.node()
    owner.assign(node, 0, spec(threads, resources=Resources(cpu=2)))
    owner.lease(await owner.pull(), (1, 1), [0])
    assert values(await owner.ended((1, 1))) == {0: "2"}


@pytest.mark.slow
async def test_a_worker_over_its_memory_is_ended(owner: Owner, start_agent: StartAgent) -> None:
    def hoard(megabytes: int) -> int:
        import time

        kept = b"x" * (megabytes << 20)
        time.sleep(2.0)
        return len(kept)

    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(hoard, resources=Resources(memory_bytes=200 << 20)))
    owner.lease(await owner.pull(), (1, 1), [500])
    [*_, last] = await owner.ended((1, 1))
    assert last.deaths[0].kind == "memory"


@pytest.mark.slow
async def test_an_idle_worker_that_is_killed_is_replaced(owner: Owner, start_agent: StartAgent) -> None:
    def whoami(_x: int) -> int:
        import os

        return os.getpid()

    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(whoami))
    owner.lease(await owner.pull(), (1, 1), [0])
    [pid] = values(await owner.ended((1, 1))).values()
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    await owner.until("its end", lambda: not psutil.pid_exists(pid))
    owner.lease(await owner.pull(), (1, 2), [0], start=1)
    hand_ins = await owner.ended((1, 2))
    assert not hand_ins[-1].deaths
    assert set(values(hand_ins).values()).isdisjoint({pid})


@pytest.mark.slow
async def test_a_node_that_is_drained_takes_no_more_work(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(double))
    await owner.pull()
    owner.answers_beats = False
    owner.connection.send(f"fw.node.{node}", BeatAck(1, drain=True, epoch=1))
    await owner.until("the pull to be taken back", lambda: owner.unpulls)
    await owner.until("a beat that says so", lambda: owner.beats[-1].draining)
    owner.connection.send(f"fw.node.{node}", BeatAck(2, drain=False, epoch=1))
    owner.lease(await owner.pull(), (1, 1), [1])
    assert values(await owner.ended((1, 1))) == {0: 2}
