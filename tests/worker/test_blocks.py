"""Very short tasks run in blocks, and who hangs, dies or prints is named all the same."""

from __future__ import annotations

import ctypes
import os
import time

from fallow.worker.block import BLOCK_TASKS
from tests.worker.harness import Bench

COUNT = 400_000
AT = 300_011


async def test_a_death_leaves_few_suspects(bench: Bench) -> None:
    bench.run(lambda x: os._exit(3) if x == AT else None, range(COUNT))
    death = await bench.recorder.death()
    assert death.kind == "worker_lost"
    assert death.index <= AT < death.index + death.count
    assert death.count <= BLOCK_TASKS


async def test_a_long_task_among_short_ones_is_named(bench: Bench) -> None:
    bench.run(lambda x: time.sleep(60) if x == AT else None, range(COUNT), spec=bench.spec(timeout_s=1.0))
    death = await bench.recorder.death()
    assert (death.kind, death.index, death.count) == ("timeout", AT, 1)


async def test_one_that_holds_the_interpreter_is_among_the_suspects(bench: Bench) -> None:
    """Nobody in the worker can say which it is: each runs again, alone, and then it is known."""

    def work(x: int) -> None:
        if x == AT:
            ctypes.PyDLL(None).sleep(60)

    bench.run(work, range(COUNT), spec=bench.spec(timeout_s=0.5))
    death = await bench.recorder.death()
    assert death.index <= AT < death.index + death.count
    assert death.kind == ("timeout" if death.count == 1 else "worker_lost")
    assert "longer than its time limit of 0.5 s" in death.message


async def test_what_follows_a_long_task_can_be_taken_back(bench: Bench) -> None:
    token = bench.run(lambda x: time.sleep(60) if x == AT else None, range(COUNT))
    await bench.until_index(token, AT)
    bench.worker.limit(token, AT + 1)
    assert bench.worker.progress()[1] == AT


async def test_lines_have_the_task_that_printed_them(bench: Bench) -> None:
    token = bench.run(lambda x: print("here") if x == AT else None, range(COUNT))
    await bench.recorder.ended(token)
    await bench.recorder.until(lambda: bench.recorder.lines)
    assert [(line.index, line.text) for line in bench.recorder.lines] == [(AT, "here")]
