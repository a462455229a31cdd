"""The first program inside a sandbox: sets limits, closes descriptors, applies Landlock, becomes the program.

    python -I -S launcher.py STATUS_FD PLAN_FD

PLAN_FD holds JSON: not arguments nor environment, which other users of the machine could read. Standard library only,
for any Python from 3.9; it runs by its path, beside landlock.py. To STATUS_FD it writes a plus before it becomes
the program, and what goes wrong, before or after.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys

LIMITS = {
    "nproc": resource.RLIMIT_NPROC,
    "as": resource.RLIMIT_AS,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": getattr(resource, "RLIMIT_MSGQUEUE", None),
    "sigpending": getattr(resource, "RLIMIT_SIGPENDING", None),
}


def main() -> None:
    status = int(sys.argv[1])
    try:
        with open(int(sys.argv[2]), "rb") as file:
            plan = json.load(file)
        _become(status, plan)
    except BaseException as error:
        os.write(status, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
        os._exit(126)


def _become(status: int, plan: dict) -> None:  # type: ignore[type-arg]
    os.set_inheritable(status, False)
    _close_all_but({0, 1, 2, status, *plan["descriptors"]})
    for name, value in plan["limits"].items():
        _limit(LIMITS[name], value)
    os.umask(0o022)
    rules = plan["landlock"]
    if rules is not None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        landlock = importlib.import_module("landlock")

        landlock.restrict(
            landlock.Rules(
                tuple(rules["readable"]), tuple(rules["writable"]), tuple(rules["devices"]), rules["network"]
            )
        )
    os.write(status, b"+")
    os.execve(plan["argv"][0], plan["argv"], plan["environment"])


def _close_all_but(kept: set) -> None:  # type: ignore[type-arg]
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass


def _limit(which: int | None, value: int) -> None:
    """Never above what the machine allows already."""
    if which is None:
        return
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


if __name__ == "__main__":
    main()
