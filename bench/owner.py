"""python -m bench owner --returns 20: how soon a machine is its owner's again.

A real pool, and one real agent that watches a real X server (Xvfb). Its workers run short tasks, long ones, and long
ones that ignore SIGTERM and have started a process of their own. A key is pressed (xdotool) at a random moment;
measured is the time until no process of the pool's work is left. Every task notes that it has finished as its last
deed: a number that is noted twice was finished and lost. (What the agent costs at rest: `python -m bench rest`.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.processes import busy_share
from bench.scale.pool import BenchPool, end_kindly
from bench.xvfb import x_server

DEADLINE_S = 60.0
LOOK_S = 0.005
AGENT = """
import sys
from pathlib import Path
from fallow.agent.main import AgentOptions, run_agent
from fallow.model.lending import HeatSettings, LendingSettings, OwnerSettings, SandboxSettings
from fallow.model.tiers import Tier
from fallow.wire.address import parse_address
owner = OwnerSettings(idle_s=float(sys.argv[3]), settle_s=0.0, busy_cpu_share=1.0, resume_cpu_share=1.0)
sandbox = SandboxSettings(backend="process", least=Tier.PROCESS)
lending = LendingSettings(owner=owner, sandbox=sandbox)
sys.exit(run_agent(AgentOptions(parse_address(sys.argv[1]), "bench", 2, Path(sys.argv[2]), lending=lending)))
"""
CLIENT = """
import os, signal, subprocess, sys, time
import fallow
app = fallow.App("returns")
notes = sys.argv[1]
@app.function(retries=0)
def work(number):
    kind = number % 40
    if kind == 39:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "4"])
        time.sleep(4)
        child.wait()
    elif kind == 19:
        time.sleep(2)
    else:
        time.sleep(0.01)
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\\n" % number)
    os.close(file)
    return number
for _ in work.map(range(10**7)):
    pass
"""


def _working(agent: psutil.Process) -> list[psutil.Process]:
    """Workers and what they started: all that descends from the agent, but its own helpers (the zygotes)."""
    try:
        helpers = {child.pid for child in agent.children()}
        return [one for one in agent.children(recursive=True) if one.pid not in helpers and _runs(one)]
    except psutil.NoSuchProcess:
        raise SystemExit("bench: the agent has ended") from None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until(what: str, holds: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {DEADLINE_S:g} s for {what}")
        time.sleep(LOOK_S)


def _count(notes: Path) -> int:
    return notes.read_bytes().count(b"\n") if notes.exists() else 0


def _returns(agent: psutil.Process, display: str, notes: Path, count: int, seed: int) -> list[float]:
    chance, found = random.Random(seed), []
    for number in range(count):
        before = _count(notes)
        _until("work", lambda before=before: _count(notes) > before + 20)
        time.sleep(chance.uniform(0.0, 1.5))
        _until("work", lambda: bool(_working(agent)))
        pressed_s = time.monotonic()
        subprocess.run(["xdotool", "key", "a"], env={**os.environ, "DISPLAY": display}, check=True)
        _until("the stop", lambda: not _working(agent))
        found.append(time.monotonic() - pressed_s)
        print(f"return {number + 1}: {found[-1]:.3f} s", file=sys.stderr)
    return found


def _run(display: str, returns: int, idle_s: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fallow-bench-") as folder, BenchPool() as pool:
        notes = Path(folder) / "notes"
        command = [sys.executable, "-c", AGENT, str(pool.address), str(Path(folder) / "home"), str(idle_s)]
        agent = subprocess.Popen(command, env={**os.environ, "DISPLAY": display}, stderr=subprocess.DEVNULL)
        pool.callback(end_kindly, agent)
        watched = psutil.Process(agent.pid)
        _until("warm workers", lambda: len(_working(watched)) >= 2)
        script = [sys.executable, "-c", CLIENT, str(notes)]
        client = subprocess.Popen(script, env=pool.environment(), stderr=subprocess.DEVNULL)
        try:
            times = _returns(watched, display, notes, returns, seed)
        finally:
            client.kill()
            client.wait()
        numbers = notes.read_bytes().split()
        return {
            "returns": len(times),
            "median_s": round(statistics.median(times), 3),
            "worst_s": round(max(times), 3),
            "finished": len(set(numbers)),
            "finished_and_lost": len(numbers) - len(set(numbers)),
        }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--returns", type=int, default=10)
    # Longer than a stop takes: else work that begins again is taken for work that goes on.
    parser.add_argument("--idle", type=float, default=2.5, help="the owner's idle_s, short so that returns follow soon")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


def main(words: list[str] | None = None) -> int:
    chosen = arguments().parse_args(words)
    result: dict[str, Any] = {"foreign_cpu_share": round(busy_share(1.0), 3)}
    with x_server() as display:
        result |= _run(display, chosen.returns, chosen.idle, chosen.seed)
    print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
