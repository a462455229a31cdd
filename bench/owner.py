"""python -m bench owner --returns 20: how soon a machine is its owner's again, and what its agent costs at rest.

A real pool, and one real agent that watches a real X server (Xvfb). Its workers run short tasks, long ones, and long
ones that ignore SIGTERM and have started a process of their own. A key is pressed (xdotool) at a random moment;
measured is the time until no process of the pool's work is left. Every task notes that it has finished as its last
deed: a number that is noted twice was finished and lost. At rest: the agent's CPU time and memory over some seconds
while it may work and has none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.processes import busy_share
from bench.scale.pool import BenchPool

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


def _x_server() -> tuple[subprocess.Popen[bytes], str]:
    out, into = os.pipe()
    command = ["Xvfb", "-displayfd", str(into), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset"]
    process = subprocess.Popen(command, pass_fds=(into,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(into)
    said = b""
    while not said.endswith(b"\n"):
        if not select.select([out], [], [], DEADLINE_S)[0]:
            raise SystemExit("bench: Xvfb does not start")
        said += os.read(out, 16)
    os.close(out)
    return process, f":{int(said)}"


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


def _rest(agent: psutil.Process, seconds: float) -> dict[str, float]:
    """Of the agent's own process, and of it with its helpers and warm workers."""
    before = {one: sum(one.cpu_times()[:2]) for one in [agent, *agent.children(recursive=True)]}
    before_s = time.monotonic()
    time.sleep(seconds)
    # What came or went meanwhile was no part of the rest.
    everyone = [one for one in before if one.is_running() and _runs(one)]
    spent = [sum(one.cpu_times()[:2]) - before[one] for one in everyone]
    took_s = time.monotonic() - before_s
    memory = [one.memory_full_info() for one in everyone]
    return {
        "agent_cpu_share": spent[0] / took_s,
        "all_cpu_share": sum(spent) / took_s,
        "agent_rss_mb": memory[0].rss / 1e6,
        "agent_pss_mb": memory[0].pss / 1e6,
        "all_pss_mb": sum(one.pss for one in memory) / 1e6,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--returns", type=int, default=10)
    parser.add_argument("--rest", type=float, default=30.0, help="seconds; 0: not measured")
    parser.add_argument("--idle", type=float, default=1.5, help="the owner's idle_s, short so that returns follow soon")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    foreign = round(busy_share(1.0), 3)
    x_process, display = _x_server()
    result: dict[str, Any] = {"foreign_cpu_share": foreign}
    try:
        with tempfile.TemporaryDirectory(prefix="fallow-bench-") as folder, BenchPool() as pool:
            notes = Path(folder) / "notes"
            environment = {**os.environ, "DISPLAY": display}
            command = [sys.executable, "-c", AGENT, str(pool.address), str(Path(folder) / "home"), str(chosen.idle)]
            agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            try:
                watched = psutil.Process(agent.pid)
                _until("warm workers", lambda: len(_working(watched)) >= 2)
                if chosen.rest:
                    time.sleep(5.0)
                    result |= {name: round(value, 4) for name, value in _rest(watched, chosen.rest).items()}
                if chosen.returns:
                    script = [sys.executable, "-c", CLIENT, str(notes)]
                    client = subprocess.Popen(script, env=pool.environment(), stderr=subprocess.DEVNULL)
                    try:
                        times = _returns(watched, display, notes, chosen.returns, chosen.seed)
                    finally:
                        client.kill()
                        client.wait()
                    numbers = notes.read_bytes().split()
                    result |= {
                        "returns": len(times),
                        "median_s": round(statistics.median(times), 3),
                        "worst_s": round(max(times), 3),
                        "finished": len(set(numbers)),
                        "finished_and_lost": len(numbers) - len(set(numbers)),
                    }
            finally:
                agent.send_signal(signal.SIGTERM)
                try:
                    agent.wait(15)
                except subprocess.TimeoutExpired:
                    agent.kill()
    finally:
        x_process.terminate()
        x_process.wait()
    print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
