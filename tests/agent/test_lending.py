"""Tasks that use the pool themselves: through their agent, lending their slot while they wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fallow.model.ids import JobId
from tests.agent.owner import Agent, Owner, spec, values

StartAgent = Callable[..., Agent]


def wait_for_file(path: str) -> bool:
    import os
    import time

    import msgspec

    from fallow.worker.nested import current

    bridge = current()
    assert bridge is not None
    lent = msgspec.msgpack.decode(bridge.ask("waiting", msgspec.msgpack.encode(True)))
    while lent and not os.path.exists(path):
        time.sleep(0.01)
    bridge.ask("waiting", msgspec.msgpack.encode(False))
    return bool(lent)


def write_file(path: str) -> None:
    with open(path, "w") as file:
        file.write("done")


def ask_the_pool(_x: int) -> tuple[Any, str]:
    import msgspec

    from fallow.wire.messages import GetPool, decode, encode
    from fallow.worker.nested import current

    bridge = current()
    assert bridge is not None
    known = msgspec.msgpack.decode(bridge.ask("pool", b""))
    reply = bridge.ask("request", msgspec.msgpack.encode(["fw.pool", encode(GetPool()), 10.0]))
    return known, decode(reply).name


async def test_a_waiting_task_lends_its_slot_to_the_nested_job(
    owner: Owner, start_agent: StartAgent, tmp_path: Path
) -> None:
    start_agent()
    node = await owner.node()
    path = str(tmp_path / "file")
    owner.assign(node, 0, spec(wait_for_file))
    owner.lease(await owner.pull(), (1, 1), [path])
    await owner.until("an idle pull, though a task runs", lambda: any(pull.idle for pull in owner.pulls))
    owner.assign(node, 0, spec(write_file, "job-bbbbbb"))
    owner.lease(await owner.pull(job_id=JobId("job-bbbbbb")), (5, 1), [path])
    await owner.ended((5, 1))
    assert values(await owner.ended((1, 1))) == {0: True}
    # The extra worker is gone after a while, and the slot goes on as before.
    owner.assign(node, 0, spec(wait_for_file, "job-cccccc"))
    owner.lease(await owner.pull(job_id=JobId("job-cccccc")), (6, 1), [path])
    assert values(await owner.ended((6, 1))) == {0: True}


async def test_a_prefetched_lease_of_the_same_job_runs_meanwhile(
    owner: Owner, start_agent: StartAgent, tmp_path: Path
) -> None:
    def first_waits(path: str) -> str:
        import os
        import time

        import msgspec

        from fallow.worker.nested import current

        if path.startswith("write "):
            with open(path.removeprefix("write "), "w"):
                return "wrote"
        bridge = current()
        assert bridge is not None
        time.sleep(0.3)
        bridge.ask("waiting", msgspec.msgpack.encode(True))
        while not os.path.exists(path):
            time.sleep(0.01)
        bridge.ask("waiting", msgspec.msgpack.encode(False))
        return "waited"

    start_agent()
    node = await owner.node()
    path = str(tmp_path / "file")
    owner.assign(node, 0, spec(first_waits))
    owner.lease(await owner.pull(), (1, 1), [path])
    owner.lease(await owner.pull(idle=False), (1, 2), [f"write {path}"], start=1)
    assert values([*await owner.ended((1, 1)), *await owner.ended((1, 2))]) == {0: "waited", 1: "wrote"}


async def test_a_task_reaches_the_pool_through_its_agent(owner: Owner, start_agent: StartAgent) -> None:
    start_agent(name="the-node")
    node = await owner.node()
    owner.assign(node, 0, spec(ask_the_pool))
    owner.lease(await owner.pull(), (1, 1), [0])
    [value] = values(await owner.ended((1, 1))).values()
    assert isinstance(value, tuple)
    known, name = value
    assert known["node"] == "the-node"
    assert known["client_id"].startswith("client-")
    assert name == "test"
