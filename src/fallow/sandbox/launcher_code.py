"""The launcher as code that the agent has compiled: it starts without a file of its own, and without the compiler."""

from __future__ import annotations

import functools
import marshal
from pathlib import Path

MARSHAL_VERSION = 4
"""Read by every Python since 3.4, as far as plain data goes."""

_MODULES = ("landlock", "launcher")
"""As the launcher imports them: each before what needs it."""
BOOT = (
    "import marshal, sys\n"
    "with open(int(sys.argv[2]), 'rb') as file:\n"
    "    for name, code in marshal.load(file):\n"
    "        module = sys.modules[name] = type(sys)(name)\n"
    "        exec(code, module.__dict__)\n"
    "    plan = marshal.load(file)\n"
    "module.main(plan)"
)


@functools.cache
def _compiled() -> bytes:
    code = []
    for name in _MODULES:
        path = Path(__file__).with_name(f"{name}.py")
        code.append((name, compile(path.read_bytes(), f"<{name}>", "exec", dont_inherit=True)))
    return marshal.dumps(code)


def packed_plan(plan: dict[str, object]) -> bytes:
    """For PLAN_FD of a launcher that runs by its path."""
    return marshal.dumps(plan, MARSHAL_VERSION)


def packed_launcher(plan: dict[str, object]) -> bytes:
    """For PLAN_FD of BOOT, in the very interpreter that this process has."""
    return _compiled() + packed_plan(plan)
