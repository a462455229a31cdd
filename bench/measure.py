"""Runs one measurement (one peer, one row) in a process of its own, and watches its memory from outside."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.processes import MARK, Marked, touch_free_memory

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_EVERY_S = 0.1


@dataclass
class Measurement:
    """Outcome of a row for a peer. `values` are what the workload reported; `error` says why there are none."""

    row: str
    peer: str
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    left_behind: list[str] = field(default_factory=list)
    """Processes that were still there ten seconds after the script had ended."""
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Place:
    """Where one measurement runs: its mark, its private home folder, its environment."""

    run_id: str
    home: Path
    environment: dict[str, str]


def _place(python: Path, scratch: Path) -> Place:
    run_id = uuid.uuid4().hex
    scratch.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FALLOW_", "VIRTUAL_ENV"))}
    environment |= {
        MARK: run_id,
        "FALLOW_HOME": str(home / "fallow"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    return Place(run_id, home, environment)


def run_workload(
    python: Path, peer: str, row: str, parameters: dict[str, Any], *, limit_s: float, scratch: Path
) -> Measurement:
    """One run. The workload says `rest` when all is warm and idle and `end` when its work is done; between the two
    the memory of all its processes is sampled where `parameters` ask for it."""
    place = _place(python, scratch)
    marked = Marked(place.run_id)
    outcome = Measurement(row, peer)
    started = time.monotonic()
    if parameters.get("touch_bytes"):
        touch_free_memory(int(parameters["touch_bytes"]))
    log_path = place.home / "stderr.txt"
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [str(python), "-m", "bench.child", peer, row, json.dumps(parameters)],
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=place.environment, cwd=place.home,
            )  # fmt: skip
            deadline = started + limit_s
            finished = _follow(process, outcome, marked if parameters.get("memory") else None, deadline)
            finished = finished and _ended(process, deadline)
            if not finished:
                outcome.error = outcome.error or f"no end within {limit_s:.0f} s"
                process.kill()
                process.wait()
        took_s = outcome.took_s = time.monotonic() - started
        if finished and not outcome.error and (process.returncode or not outcome.values):
            tail = log_path.read_text(errors="replace").strip().splitlines()[-3:]
            outcome.error = f"ended with exit code {process.returncode} after {took_s:.0f} s: {' | '.join(tail)[-400:]}"
        outcome.left_behind = marked.end(grace_s=10.0 if finished else 0.0)
    except BaseException:  # Ctrl-C and the like: what was started goes too
        marked.end(grace_s=0.0)
        raise
    finally:
        shutil.rmtree(place.home, ignore_errors=True)
    return outcome


def _ended(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """A process that said its last word may still not end."""
    try:
        process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _follow(process: subprocess.Popen[bytes], outcome: Measurement, memory: Marked | None, deadline: float) -> bool:
    """Read the child's event lines until it ends or the deadline; False for the deadline."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    rest = peak = 0
    sampling = False
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if selector.select(SAMPLE_EVERY_S if sampling else 0.5):
                data = process.stdout.read()
                if data == b"":
                    return True
                *lines, pending = (pending + (data or b"")).split(b"\n")
                for line in lines:
                    if not line.startswith(b"@@"):
                        continue
                    event = json.loads(line[2:])
                    match event.pop("event"):
                        case "rest" if memory is not None:
                            rest = peak = memory.memory_bytes()
                            sampling = True
                        case "end":
                            sampling = False
                        case "values":
                            outcome.values |= event
                        case "error":
                            outcome.error = event["message"]
            if sampling and memory is not None:
                peak = max(peak, memory.memory_bytes())
                outcome.values |= {"memory_mb": round((peak - rest) / 1e6, 1), "rest_mb": round(rest / 1e6, 1)}
    return False


def run_cold(
    python: Path, peer: str, variant: str, script: str, *, limit_s: float, scratch: Path, repeat: int
) -> Measurement:
    """Time from starting `python script.py` to its first result, the median of `repeat` runs after one unmeasured;
    `limit_s` for all of them together."""
    place = _place(python, scratch)
    marked = Marked(place.run_id)
    outcome = Measurement("cold", peer)
    path = place.home / "script.py"
    path.write_text(script)
    keeper: subprocess.Popen[bytes] | None = None
    started = time.monotonic()
    try:
        if variant == "running pool":
            keeper = subprocess.Popen(
                [str(python), "-m", "bench.child", peer, "keep", "{}"], stdout=subprocess.PIPE,
                stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=place.environment, cwd=place.home,
            )  # fmt: skip
            assert keeper.stdout is not None
            if not _line(keeper.stdout, started + limit_s).startswith(b"@@"):
                raise RuntimeError("the pool did not start")
        times = [_first_result_s(python, path, place, started + limit_s) for _ in range(repeat + 1)]
        outcome.values = {f"cold_s {variant}": round(statistics.median(times[1:]), 4)}
    except (RuntimeError, OSError) as error:
        outcome.error = f"{variant}: {error}"
    finally:
        if keeper is not None and keeper.stdin is not None:
            keeper.stdin.close()
            try:
                keeper.wait(15)
            except subprocess.TimeoutExpired:
                keeper.kill()
        outcome.left_behind = marked.end(grace_s=10.0)
        shutil.rmtree(place.home, ignore_errors=True)
    outcome.took_s = time.monotonic() - started
    return outcome


def _first_result_s(python: Path, script: Path, place: Place, deadline: float) -> float:
    """Run the script to its end. Raises RuntimeError where it says nothing, or does not end before the deadline."""
    log_path = place.home / "stderr.txt"
    begin = time.perf_counter()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(python), str(script)], stdout=subprocess.PIPE, stderr=log, env=place.environment, cwd=place.home
        )
    assert process.stdout is not None
    try:
        line = _line(process.stdout, deadline)
        took_s = time.perf_counter() - begin
        if line.startswith(b"first"):
            process.wait(max(0.0, deadline - time.monotonic()))
            return took_s
    except subprocess.TimeoutExpired:
        raise RuntimeError("the script had its first result and did not end") from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise RuntimeError(log_path.read_text(errors="replace").strip()[-300:] or "no result in time")


def _line(stream: IO[bytes], deadline: float) -> bytes:
    """The first line of a stream that nobody has read from; b"" where it ends or the deadline comes before one."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            if not (byte := os.read(stream.fileno(), 1)):
                return b""
            found += byte
    return found
