"""The simulator's own parts: availability, options, and the auditor that must not sleep."""

from __future__ import annotations

import json
import random

import pytest

from fallow.model.errors import SettingError
from fallow.model.ids import ClientId, Digest, JobId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.sim.__main__ import main
from fallow.sim.availability import load_availability
from fallow.sim.options import Options
from fallow.sim.truth import Broken, JobRow, Truth
from fallow.sim.world import World


def row(total: int = 10) -> JobRow:
    return JobRow(JobSpec(JobId("j"), "j", JobKind.MAP, ClientId("c"), Blob(Digest(""), 0, b"")), total, 1.0, 0)


def test_machines_stay_as_long_as_the_trace_says() -> None:
    office = load_availability("Microsoft99")
    chance = random.Random(1)
    mean_up_h = sum(office.up_s(chance) for _ in range(20_000)) / 20_000 / 3600
    assert mean_up_h == pytest.approx(60.1, rel=0.08)
    assert office.share == pytest.approx(0.81, abs=0.01)
    assert office.faster(10).share == office.share


def test_unknown_trace_and_bad_options_are_told_in_words() -> None:
    with pytest.raises(SettingError, match="no trace is called 'Mars'; there are G5k06"):
        load_availability("Mars")
    with pytest.raises(SettingError, match="--nodes must be at least 1"):
        Options(nodes=0).check()
    with pytest.raises(SettingError, match="--loss is a share"):
        Options(loss=2.0).check()


def test_the_auditor_sees_a_task_that_is_recorded_twice() -> None:
    truth, job = Truth(), row()
    epoch = truth.acquire(job, 0)
    assert truth.commit(job, epoch, [(0, 4)], [], False, 0.0)
    with pytest.raises(Broken, match="task 3 was recorded a second time"):
        truth.commit(job, epoch, [(3, 5)], [], False, 0.0)


def test_the_auditor_refuses_a_fenced_owner_and_an_early_end() -> None:
    truth, job = Truth(), row()
    old = truth.acquire(job, 0)
    truth.acquire(job, 1)
    assert not truth.commit(job, old, [(0, 4)], [], False, 0.0)
    assert len(job.done) == 0
    assert truth.fenced == 1
    with pytest.raises(Broken, match="ended with 10 of 10 tasks missing"):
        truth.commit(job, job.epoch, [], [], True, 0.0)


def test_a_step_that_leaves_a_task_in_two_places_is_seen_at_once() -> None:
    world = World(Options(nodes=2, jobs=1, hours=1.0, fault_rate=0.0))
    [job] = world.rows
    job.arrived_at = 0.0
    world.take_over(job)
    owned = world.owner_of(job)
    assert owned is not None
    owned.progress.pull(world.nodes[0].slots[0].key, 1, True, ())
    effects = owned.progress.dispatch(0.0)
    owned.progress.todo.add(0, 1)
    with pytest.raises(Broken, match=r"\[0, 1\) was leased, and is not just in that lease"):
        owned._perform(effects, None)


def test_an_owner_hears_of_what_has_begun_when_it_looks() -> None:
    """No event is drawn for a beat; the last one before a node is cut off is known all the same."""
    world = World(Options(nodes=1, jobs=1, hours=1.0, fault_rate=0.0, loss=0.0, duplicate=0.0, load=9.0))
    [job], [node] = world.rows, world.nodes
    world.clock.after(0.0, world.agents.come, node)
    world.clock.after(0.0, world._arrive, job)
    world.clock.run(60.0)
    owned = world.owner_of(job)
    assert owned is not None
    assert next(lease.index for lease in owned.progress.leases.values()) == -1
    world.faults._cut_zones({node.zone}, 60.0)
    running = node.slots[0].running
    assert running is not None
    assert owned.progress.leases[running.token].index == running.start


def test_a_lease_given_ahead_takes_no_event_and_is_there_when_somebody_looks() -> None:
    world = World(Options(nodes=1, jobs=1, hours=1.0, fault_rate=0.0, loss=0.0, duplicate=0.0, load=9.0))
    [job], [slot] = world.rows, world.nodes[0].slots
    world.clock.after(0.0, world.agents.come, slot.node)
    world.clock.after(0.0, world._arrive, job)
    world.clock.run(60.0)
    assert slot.running is not None
    assert slot.queued is None
    assert slot.coming is not None
    arrived, *grant = slot.coming
    assert arrived < 60.0
    slot.coming = (61.0, *grant)  # the same, still on its way
    world.agents.settle(slot)
    assert slot.coming is None, "it is an event now"
    world.clock.run(60.5)
    assert slot.queued is None
    slot.coming = (arrived, *grant)
    world.agents.settle(slot)
    assert slot.queued is not None
    queued = slot.queued
    world.clock.run(62.0)
    assert slot.queued is queued, "it came a second time"


def test_what_only_a_former_owner_was_sent_counts_as_lost() -> None:
    world = World(Options(nodes=1, jobs=1, hours=1.0, fault_rate=0.0, loss=0.0, duplicate=0.0))
    [job], [node] = world.rows, world.nodes
    world._arrive(job)
    assert world.to_owners(node, job, "unpull", node.slots[0], 1)
    world.truth.acquire(job, 1)
    assert not world.to_owners(node, job, "unpull", node.slots[0], 1)


def test_the_command_prints_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nodes", "10", "--hours", "0.02", "--jobs", "2", "--task-s", "5"]
    assert main(arguments) == 0
    assert "every job ended" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == 2
    with pytest.raises(SystemExit):
        main(["--trace", "Mars"])
    assert "no trace is called" in capsys.readouterr().err
