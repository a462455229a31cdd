"""python -m bench rest: what a pool and a lent machine cost while there is nothing to do.

Two pools of real programs. `up`: `fallow up` with its local node. `lent`: the same, and `fallow join --strangers` under
a real X server (Xvfb) with the settings that every provider begins with: the default sandbox, the default looks. It is
measured twice: while the machine is its owner's (input was three minutes ago or less), and while it may work and there
is no work. To come to the second state sooner, two of the settings are changed under the running agent: the owner is
away after ten seconds instead of 180, and the load of other programs on this machine counts for nothing. Neither makes
a look rarer or cheaper.

CPU is of one core; wakes are voluntary context switches of all threads; MB is the proportional set size, and RSS counts
shared pages in full. Below each state of the lent machine stands, from the same minute, a loop that only sleeps as
often as the agent woke: that much of the agent's share is the machine's own, and no program's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.processes import busy_share
from bench.scale.pool import end_kindly
from bench.xvfb import x_server

DEADLINE_S = 60.0
SETTLE_S = 25.0
"""Imports, the first measurement of the machine and other things of a start are over by then, on a busy machine too."""
SOONER = ("owner.idle=10 s", "owner.settle=1 s", "owner.busy_cpu=100 %", "owner.resume_cpu=100 %")
_SLEEPER = "import sys, time\nwhile True: time.sleep(float(sys.argv[1]))"
BASE = "(only sleeping as often)"
LIMITS = {"cpu_share": 0.005, "memory_mb": 60.0}


def _fallow(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "fallow.cli.main", *words, "--home", str(home)]


def _until(what: str, holds: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {DEADLINE_S:g} s for {what}")
        time.sleep(0.05)


def _roles(root: psutil.Process, is_pool: bool) -> dict[psutil.Process, str]:
    """What each process is: `fallow up` and its children, or an agent and its."""
    found = {root: "supervisor" if is_pool else "agent"}
    agents = [] if is_pool else [root]
    for child in root.children() if is_pool else ():
        name = "nats-server" if "nats" in child.name() else "agent" if child.children() else "coordinator"
        found[child] = name
        agents += [child] if name == "agent" else []
    for agent in agents:
        for helper in agent.children():
            found[helper] = "zygote"
            for inner in helper.children(recursive=True):
                found[inner] = "worker or sandbox"
    return found


def _cpu_s(pid: int) -> float:
    """Of all threads, to the nanosecond; one that ends meanwhile takes its time with it."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _wakes(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt"):
                    total += int(line.split()[1])
    return total


def _measure(root: psutil.Process, is_pool: bool, seconds: float) -> dict[str, dict[str, float]]:
    """By role: share of a core, wakes a second, megabytes."""
    roles = _roles(root, is_pool)
    before = {one: (_cpu_s(one.pid), _wakes(one.pid)) for one in roles}
    began_s = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    found: dict[str, dict[str, float]] = {}
    for one, role in roles.items():
        with contextlib.suppress(psutil.Error, OSError):
            row = found.setdefault(role, {"cpu_share": 0.0, "wakes_per_s": 0.0, "memory_mb": 0.0, "rss_mb": 0.0})
            row["processes"] = row.get("processes", 0) + 1
            row["cpu_share"] += (_cpu_s(one.pid) - before[one][0]) / took_s
            row["wakes_per_s"] += (_wakes(one.pid) - before[one][1]) / took_s
            memory = one.memory_full_info()
            row["memory_mb"] += memory.pss / 1e6
            row["rss_mb"] += memory.rss / 1e6
    return {role: {name: round(value, 5) for name, value in row.items()} for role, row in found.items()}


def _only_sleeping(row: dict[str, float], seconds: float) -> dict[str, float]:
    """A loop that does nothing but wake as often as an agent that was just measured: what a wake-up costs on this
    machine at this hour, whoever wakes."""
    command = [sys.executable, "-I", "-S", "-c", _SLEEPER, str(1.0 / max(0.1, row["wakes_per_s"]))]
    with subprocess.Popen(command) as sleeper:
        try:
            time.sleep(1.0)
            return _measure(psutil.Process(sleeper.pid), False, seconds)["agent"]
        finally:
            sleeper.kill()


def _with_base(agent: psutil.Process, seconds: float) -> dict[str, dict[str, float]]:
    found = _measure(agent, False, seconds)
    return {**found, BASE: _only_sleeping(found["agent"], seconds)}


def _status(home: Path) -> dict[str, Any]:
    asked = subprocess.run(_fallow(home, "node", "status", "--json"), capture_output=True, text=True)
    with contextlib.suppress(ValueError, KeyError, IndexError):
        found = json.loads(asked.stdout)
        return dict(found[0] if isinstance(found, list) else found)
    return {}


def _pool(stack: contextlib.ExitStack, home: Path, agent: bool) -> tuple[psutil.Process, str]:
    """`fallow up`, and the address that others join it by."""
    words = ["up", "--slots", "2", *([] if agent else ["--no-agent"])]
    up = subprocess.Popen(_fallow(home, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(end_kindly, up)
    _until("`fallow up`", (home / "pool.json").exists)
    return psutil.Process(up.pid), str(json.loads((home / "pool.json").read_text())["address"])


def _of_pool(folder: Path, seconds: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        root, _ = _pool(stack, folder / "up", agent=True)
        time.sleep(SETTLE_S)  # its own start takes part of that
        return {"fallow up": _measure(root, True, seconds)}


def _of_lent(folder: Path, seconds: float) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(x_server())
        _, address = _pool(stack, folder / "pool", agent=False)
        home = folder / "lent"
        join = subprocess.Popen(
            _fallow(home, "join", "--strangers", "--slots", "2", address),
            env={**os.environ, "DISPLAY": display}, stdout=subprocess.DEVNULL, stderr=(folder / "join.log").open("w"),
        )  # fmt: skip
        stack.callback(end_kindly, join)
        _until("the agent", lambda: _status(home).get("state"))
        time.sleep(SETTLE_S)
        agent = psutil.Process(join.pid)
        owners = _status(home)
        found = {"lent, its owner is there": _with_base(agent, seconds)}
        subprocess.run(_fallow(home, "node", "limits", *SOONER), check=True, capture_output=True)
        _until("the owner to be away", lambda: _status(home).get("state") == "idle")
        time.sleep(SETTLE_S)
        found["lent, it may work"] = _with_base(agent, seconds)
        free = _status(home)
        for status, wanted in ((owners, "paused"), (free, "idle")):
            if status.get("state") != wanted:
                raise SystemExit(f"bench: the agent was to be {wanted}: {status.get('state')}, {status.get('reason')}")
        return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench rest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--only", choices=("up", "lent"))
    parser.add_argument("--json", type=Path)
    return parser


def main(given: list[str] | None = None) -> int:
    chosen = arguments().parse_args(given)
    foreign = round(busy_share(1.0), 3)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fallow-bench-") as name:
        if chosen.only != "lent":
            result |= _of_pool(Path(name), chosen.seconds)
        if chosen.only != "up":
            result |= _of_lent(Path(name), chosen.seconds)
    print(f"Other programs use {foreign:.0%} of this machine.")
    print(f"{'':26}{'process':26}{'CPU of a core':>14}{'wakes/s':>9}{'MB':>7}{'RSS':>7}")
    for state, rows in result.items():
        for role, row in rows.items():
            words = role if row["processes"] == 1 else f"{row['processes']:.0f} x {role}"
            cpu, wakes, memory = row["cpu_share"], row["wakes_per_s"], row["memory_mb"]
            print(f"{state:26}{words:26}{cpu:>14.2%}{wakes:>9.1f}{memory:>7.1f}{row['rss_mb']:>7.1f}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"foreign_cpu_share": foreign, **result}, indent=2))
    agents = [rows["agent"] for state, rows in result.items() if state.startswith("lent")]
    met = all(row[name] <= limit for row in agents for name, limit in LIMITS.items())
    if agents:
        print(f"The lent agent is to stay under 0.5 % of a core and 60 MB: {'it does' if met else 'it does not'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
