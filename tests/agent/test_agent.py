"""A real agent, with real workers, against an owner that the test plays over a real NATS server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fallow.agent.probe import FIND_TIMEOUT_S
from fallow.model.ids import Digest, JobId, call_token
from fallow.model.job import Blob, JobKind
from fallow.wire import subjects
from fallow.wire.address import PoolAddress
from tests.agent.owner import Agent, NatsServer, Owner, given_back, is_alive, owner_of, spec, values

StartAgent = Callable[..., Agent]


def double(x: int) -> int:
    return 2 * x


def nap(x: float) -> int:
    time.sleep(x)
    return os.getpid()


def pid_then_sleep(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def die(x: int) -> int:
    if x == 3:
        os._exit(7)
    return x


async def test_a_lease_runs_and_the_next_is_prefetched(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(double))
    owner.lease(await owner.pull(), (1, 1), range(1000))
    owner.lease(await owner.pull(idle=None), (1, 2), range(1000, 1500), start=1000)
    first, second = await owner.ended((1, 1)), await owner.ended((1, 2))
    assert values(first + second) == {index: 2 * index for index in range(1500)}
    assert sum(hand_in.run_s for hand_in in first) > 0
    pull = await owner.pull()
    assert pull.idle
    assert 0 in pull.pages


async def test_a_client_sends_its_calls_to_a_slot_and_nothing_else(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(double, kind=JobKind.CALLS))
    client = subjects.calls(node)
    pull = await owner.pull()
    owner.lease(pull, (1, 7), [1], start=7, subject=client)  # a token that only an owner may give
    owner.lease(pull, call_token(1, 8), [21], start=8, subject=client)
    assert values(await owner.ended(call_token(1, 8))) == {8: 42}
    assert not [hand_in for hand_in in owner.hand_ins if hand_in.token == (1, 7)]
    owner.assign(node, 0, spec(double, "job-bbbbbb"))
    pull = await owner.pull(job_id=JobId("job-bbbbbb"))
    owner.lease(pull, call_token(1, 9), [1], start=9, subject=client)
    assert given_back(await owner.ended(call_token(1, 9))) == {9}, "the slot works for a job without calls"


async def test_a_call_that_was_sent_under_the_last_owner_is_the_next_ones(
    owner: Owner, start_agent: StartAgent
) -> None:
    start_agent()
    node = await owner.node()
    job = spec(double, kind=JobKind.CALLS)
    owner.assign(node, 0, job)
    client = subjects.calls(node)
    pull = await owner.pull()
    owner.lease(pull, call_token(1, 8), [21], start=8, subject=client)
    await owner.ended(call_token(1, 8))
    owner.epoch = 3
    owner.revoke(job.job_id, node, (1, 1))  # so that the node has heard of it
    owner.epoch = 1
    for index in (8, 9):
        owner.lease(pull, call_token(1, index), [index], start=index, subject=client)
    owner.epoch = 3
    assert values(await owner.ended(call_token(3, 9))) == {9: 18}
    assert not [hand_in for hand_in in owner.hand_ins if hand_in.token == call_token(3, 8)], "it came twice"


@pytest.mark.slow
async def test_a_hand_in_is_sent_again_until_it_is_acknowledged(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.acknowledges = False
    owner.assign(node, 0, spec(double))
    owner.lease(await owner.pull(), (1, 1), [1, 2, 3])
    await owner.ended((1, 1))
    await owner.until("the hand-in again", lambda: len(owner.raw_hand_ins) >= 2)
    assert owner.raw_hand_ins[0].seq == owner.raw_hand_ins[1].seq
    owner.acknowledges = True
    await owner.until("once more, to be acknowledged", lambda: len(owner.raw_hand_ins) >= 3)
    owner.lease(await owner.pull(), (1, 2), [4], start=3)
    await owner.ended((1, 2))
    count = sum(1 for hand_in in owner.raw_hand_ins if hand_in.token == (1, 1))
    beats = len(owner.beats)
    await owner.until("some beats", lambda: len(owner.beats) >= beats + 3)
    assert sum(1 for hand_in in owner.raw_hand_ins if hand_in.token == (1, 1)) == count


@pytest.mark.slow
async def test_what_is_not_begun_can_be_taken_back(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    running = owner.lease(await owner.pull(), (1, 1), [0.4] * 10)
    waiting = owner.lease(await owner.pull(idle=False), (1, 2), [0.4] * 10, start=10)
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    owner.take_back(waiting, node, 1.0)
    owner.take_back(running, node, 0.5)
    await owner.until("a part of the running lease", lambda: given_back(owner.hand_ins) & set(range(10)))
    assert given_back(await owner.ended((1, 2))) == set(range(10, 20))
    hand_ins = await owner.ended((1, 1))
    assert set(values(hand_ins)) | given_back(hand_ins) == set(range(10))
    assert not set(values(hand_ins)) & given_back(hand_ins)
    assert len(given_back(hand_ins)) >= 2


async def test_a_lease_whose_last_task_runs_answers_at_once_that_nothing_is_left(
    owner: Owner, start_agent: StartAgent
) -> None:
    """Whoever asked it has a slot that is idle, and asks another lease next."""
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    lease = owner.lease(await owner.pull(), (1, 1), [600.0])
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    owner.take_back(lease, node, 0.5)
    await owner.until("an answer", lambda: owner.raw_hand_ins)
    (answer,) = owner.hand_ins
    assert (answer.token, answer.results, answer.give_back, answer.ended) == ((1, 1), (), (), False)
    owner.revoke(lease.job_id, node, (1, 1))


async def test_a_job_that_waits_behind_a_task_gets_the_slot_that_is_free_first(
    owner: Owner, start_agent: StartAgent
) -> None:
    start_agent(slots=2)
    node = await owner.node()
    other = spec(double, "job-bbbbbb")
    for slot in (0, 1):
        owner.assign(node, slot, spec(nap))
    owner.lease(await owner.pull(1), (1, 1), [600.0])
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    owner.assign(node, 1, other)
    await owner.until("a beat", lambda: [slot.job_id for slot in owner.beats[-1].slots] == ["job-aaaaaa", "job-bbbbbb"])
    owner.lease(await owner.pull(0), (1, 2), [0.0], start=1)
    owner.lease(await owner.pull(0, job_id=other.job_id), (1, 3), [21])
    assert values(await owner.ended((1, 3))) == {0: 42}
    assert [slot.job_id for slot in owner.beats[-1].slots] == ["job-bbbbbb", "job-aaaaaa"], "the pool is told"
    assert (await owner.pull(1, idle=False)).job_id == "job-aaaaaa"


@pytest.mark.slow
async def test_a_budget_that_ends_gives_the_rest_back(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [0.2] * 100, budget_s=1.0)
    hand_ins = await owner.ended((1, 1))
    assert set(values(hand_ins)) | given_back(hand_ins) == set(range(100))
    assert 1 <= len(values(hand_ins)) < 100


@pytest.mark.slow
async def test_a_cancelled_job_ends_its_task_and_the_next_job_runs(
    owner: Owner, start_agent: StartAgent, tmp_path: Any
) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(pid_then_sleep))
    path = tmp_path / "pid"
    owner.lease(await owner.pull(), (1, 1), [str(path)])
    await owner.until("the task to begin", lambda: path.exists() and path.read_text())
    pid = int(path.read_text())
    owner.revoke(JobId("job-aaaaaa"), node)
    await owner.until("the worker to be killed", lambda: not is_alive(pid) or _is_zombie(pid))
    owner.assign(node, 0, spec(double, "job-bbbbbb"))
    owner.lease(await owner.pull(job_id=JobId("job-bbbbbb")), (1, 1), [21])
    await owner.until("the next job", lambda: any(h.job_id == "job-bbbbbb" for h in owner.hand_ins))
    assert not any(h.job_id == "job-aaaaaa" for h in owner.hand_ins)


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def test_a_death_names_its_task_and_a_new_worker_goes_on(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(die))
    owner.lease(await owner.pull(), (1, 1), range(10))
    [*_, last] = await owner.ended((1, 1))
    [death] = last.deaths
    assert (death.index, death.kind) == (3, "worker_lost")
    assert "7" in death.message
    owner.lease(await owner.pull(), (1, 2), [0, 1, 2], start=10)
    assert len(values(await owner.ended((1, 2)))) == 3


async def test_a_function_that_cannot_be_loaded_is_refused_in_words(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    broken = msgspec.structs.replace(spec(double), function=Blob(Digest("f" * 64), 4, b"junk"))
    owner.assign(node, 0, broken)
    owner.lease(await owner.pull(), (1, 1), [1])
    await owner.until("the refusal", lambda: owner.refusals)
    assert owner.refusals[0].fatal
    assert owner.refusals[0].kind == "setup"
    assert owner.refusals[0].message.startswith("the function could not be loaded: "), "before any traceback"
    await owner.ended((1, 1))


async def test_printed_lines_arrive_labelled(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()

    def speak(x: int) -> None:
        print("hello", x)

    owner.assign(node, 0, spec(speak))
    owner.lease(await owner.pull(), (1, 1), [5, 6])
    await owner.until("two lines", lambda: sum(len(message.lines) for message in owner.logs) >= 2)
    lines = [(line.index, line.text.strip()) for message in owner.logs for line in message.lines]
    assert (0, "hello 5") in lines
    assert (1, "hello 6") in lines


@pytest.mark.slow
async def test_sigterm_hands_in_what_is_done_and_leaves_nothing(owner: Owner, start_agent: StartAgent) -> None:
    agent = start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [0.3] * 50)
    owner.lease(await owner.pull(idle=False), (1, 2), [0.3] * 5, start=50)
    await owner.until("a task in progress", lambda: any(x.index >= 1 for x in owner.held))
    assert agent.end() == 0
    await owner.until("the goodbye", lambda: owner.byes)
    hand_ins = await owner.ended((1, 1))
    assert set(values(hand_ins)) | given_back(hand_ins) == set(range(50))
    assert given_back(await owner.ended((1, 2))) == set(range(50, 55))
    assert list((agent.home / "scratch").iterdir()) == []


@pytest.mark.slow
async def test_results_survive_the_loss_of_the_nats_server(
    owner: Owner, start_agent: StartAgent, nats: NatsServer
) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [0.5] * 4)
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    nats.kill()
    beats = len(owner.beats)
    nats.start()
    hand_ins = await owner.ended((1, 1))
    assert len(values(hand_ins)) == 4
    await owner.until("beats again", lambda: len(owner.beats) > beats)
    owner.lease(await owner.pull(), (1, 2), [0.0], start=4)
    await owner.ended((1, 2))


@pytest.mark.slow
async def test_two_agents_with_one_name_and_one_home_are_two_nodes(owner: Owner, start_agent: StartAgent) -> None:
    first = start_agent(name="same")
    await owner.node()
    second = start_agent(name="same")
    await owner.node(count=2)
    assert first.end() == 0
    assert second.end() == 0
    third = start_agent(name="same")
    await owner.until("the third", lambda: len({beat.session for beat in owner.beats}) == 3)
    assert owner.beats[-1].node_id == owner.beats[0].node_id, "the first identity is free again"
    third.end()


@pytest.mark.slow
async def test_a_killed_agent_leaves_no_process(owner: Owner, start_agent: StartAgent) -> None:
    agent = start_agent(slots=2)
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [600.0])
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    children = agent.descendants()
    assert children
    agent.process.kill()
    agent.process.wait()
    _, alive = psutil.wait_procs(children, 60)
    assert not alive


@pytest.mark.slow
async def test_a_new_owner_takes_the_place_of_a_stale_one(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [0.7] * 3)
    owner.epoch = 2
    owner.lease(await owner.pull(idle=False), (2, 1), [0.0], start=3)
    await owner.until("the second lease", lambda: any(x.token == (2, 1) for x in owner.held))
    owner.epoch = 1
    owner.revoke(JobId("job-aaaaaa"), node)
    owner.epoch = 2
    assert len(values(await owner.ended((1, 1)))) == 3
    assert len(values(await owner.ended((2, 1)))) == 1


@pytest.mark.slow
async def test_a_second_signal_ends_the_agent_at_once(owner: Owner, start_agent: StartAgent) -> None:
    agent = start_agent()
    node = await owner.node()
    owner.assign(node, 0, spec(nap))
    owner.lease(await owner.pull(), (1, 1), [600.0])
    await owner.until("a task in progress", lambda: any(x.index >= 0 for x in owner.held))
    children = agent.descendants()
    agent.process.send_signal(signal.SIGINT)
    await owner.until("it to begin its end", lambda: owner.unpulls or agent.process.poll() is not None)
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(60) in (0, 130)
    _, alive = psutil.wait_procs(children, 60)
    assert not alive


def test_an_agent_waits_for_a_pool_that_is_not_there_yet(
    nats: NatsServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    nats.kill()
    agent = start_agent()

    async def meet() -> None:
        nats.start()
        async with owner_of(nats.address) as owner:
            await owner.node()

    asyncio.run(meet())
    assert agent.end() == 0


@pytest.mark.slow
def test_a_wrong_token_is_refused_in_words(nats: NatsServer, tmp_path: Path) -> None:
    address = PoolAddress(nats.address.servers, "wrong")
    agent = Agent(address, tmp_path / "home", 1)
    try:
        assert agent.process.wait(60) == 1
        assert "refused the token" in agent.log.read_text()
        assert not list((tmp_path / "home" / "scratch").iterdir())
    finally:
        agent.destroy()


@pytest.mark.slow
async def test_a_node_says_when_it_knows_all_pythons_of_its_machine(owner: Owner, start_agent: StartAgent) -> None:
    start_agent()
    await owner.node()
    specs = [beat.spec for beat in owner.beats if beat.spec]
    assert specs[0].seeks_pythons
    known = await owner.until(  # it goes behind all else that this machine does, and each of five may take its time
        "the search's end",
        lambda: [b.spec for b in owner.beats if b.spec and not b.spec.seeks_pythons],
        within_s=6 * FIND_TIMEOUT_S,
    )
    assert known[0].pythons[0] == specs[0].pythons[0]
