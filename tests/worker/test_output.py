"""What tasks print reaches the agent, labelled and bounded."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator

import pytest

from fallow.agent.worker_output import OutputPipe
from fallow.worker.output import BURST_LINES, LINE_LIMIT, TAIL_LINES, TaskStream
from tests.worker.harness import Bench


async def test_lines_carry_their_task(bench: Bench) -> None:
    def work(x: int) -> None:
        print("hello", x)
        print("oh", x, file=sys.stderr)
        print("no line end", end="")

    await bench.map(work, range(3))
    lines = [(line.index, line.stream, line.text) for line in bench.recorder.lines]
    for x in range(3):
        assert (x, "stdout", f"hello {x}") in lines
        assert (x, "stderr", f"oh {x}") in lines
        assert (x, "stdout", "no line end") in lines
    assert len(lines) == 9


async def test_lines_come_before_the_last_report(bench: Bench) -> None:
    token = bench.run(lambda x: print("x" * 100), range(50))
    await bench.recorder.ended(token)
    assert len(bench.recorder.lines) == 50


async def test_output_of_c_code_and_of_child_processes(bench: Bench) -> None:
    def work(x: int) -> None:
        import subprocess

        libc = ctypes.CDLL(None)
        libc.printf(b"from C\n")
        os.write(2, b"raw\n")
        sys.stdout.buffer.write(b"bytes\n")
        sys.stdout.flush()
        subprocess.run(["echo", "child"], check=True)

    await bench.map(work, range(7, 8))
    lines = {(line.index, line.stream, line.text) for line in bench.recorder.lines}
    assert lines == {
        (0, "stdout", "from C"),
        (0, "stderr", "raw"),
        (0, "stdout", "bytes"),
        (0, "stdout", "child"),
    }


async def test_last_lines_before_a_crash_are_kept(bench: Bench) -> None:
    def work(x: int) -> None:
        print("about to crash")
        os._exit(1)

    bench.run(work, range(1))
    await bench.recorder.death()
    assert [line.text for line in bench.recorder.lines] == ["about to crash"]


@pytest.mark.slow
async def test_a_flood_is_cut_in_the_middle(bench: Bench) -> None:
    def work(x: int) -> int:
        for n in range(100_000):
            print(f"{n:06d}", "x" * 1000)
        return x

    assert await bench.map(work, range(2)) == [0, 1]
    bench.worker.stop()
    await bench.worker.exited
    texts = [line.text for line in bench.recorder.lines]
    assert texts[0].startswith("000000 ")
    assert texts[-1].startswith("099999 ")
    assert any("left out: printed too fast" in text for text in texts)
    assert sum(map(len, texts)) < 20_000_000


@pytest.mark.slow
async def test_a_gigabyte_from_c_code(bench: Bench) -> None:
    def work(x: int) -> int:
        block = (b"y" * 1023 + b"\n") * 1024
        for _ in range(1024):
            os.write(1, block)
        print("end")
        return x

    assert await bench.map(work, range(1)) == [0]
    texts = [line.text for line in bench.recorder.lines]
    assert texts[0] == "y" * 1023
    assert "end" in texts
    assert sum(map(len, texts)) < 100_000_000


class TestStream:
    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, OutputPipe]]:
        read, write = os.pipe()
        os.set_blocking(read, False)
        pipe = OutputPipe(read, "stdout")
        yield write, pipe
        os.close(write)
        pipe.close()

    def test_partial_lines_of_another_task_are_apart(self, pipe: tuple[int, OutputPipe]) -> None:
        index = [1]
        stream = TaskStream(pipe[0], lambda: index[0])
        stream.write("a")
        index[0] = 2
        stream.write("b\nc")
        stream.finish()
        assert [(line.index, line.text) for line in pipe[1].drain(9)] == [(1, "a"), (2, "b"), (2, "c")]

    def test_long_lines_are_cut(self, pipe: tuple[int, OutputPipe]) -> None:
        stream = TaskStream(pipe[0], lambda: 0)
        stream.write("é" * 20_000 + "\n")
        (line,) = pipe[1].drain(0)
        assert line.text == "é" * LINE_LIMIT + " [... line of 20,000 characters]"

    def test_first_and_last_of_a_flood(self, pipe: tuple[int, OutputPipe]) -> None:
        stream = TaskStream(pipe[0], lambda: 0)
        lines = []
        for n in range(10 * BURST_LINES):
            stream.write(f"{n}\n")
            lines += pipe[1].read(0)
        stream.close_gap()
        lines += pipe[1].drain(0)
        texts = [line.text for line in lines]
        assert texts[: BURST_LINES // 2] == [str(n) for n in range(BURST_LINES // 2)]
        assert texts[-TAIL_LINES:] == [str(n) for n in range(10 * BURST_LINES - TAIL_LINES, 10 * BURST_LINES)]
        assert len(texts) < 2 * BURST_LINES

    def test_surrogates_do_not_stop_the_stream(self, pipe: tuple[int, OutputPipe]) -> None:
        stream = TaskStream(pipe[0], lambda: 0)
        stream.write("a\ud800\n")
        assert [line.text for line in pipe[1].drain(0)] == ["a\\ud800"]

    def test_wrong_types_are_refused(self, pipe: tuple[int, OutputPipe]) -> None:
        with pytest.raises(TypeError):
            TaskStream(pipe[0], lambda: 0).write(b"x")  # type: ignore[arg-type]


def test_printing_costs_little_once_a_flood_is_cut(tmp_path: object) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = TaskStream(write, lambda: 0)
    began = time.perf_counter()
    for _ in range(100_000):
        stream.write("x" * 100 + "\n")
    assert time.perf_counter() - began < 20
    os.close(write)
