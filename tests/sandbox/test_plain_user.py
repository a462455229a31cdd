"""The same walls where the agent is no root but an ordinary user, as nearly everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.plain_user import command, environment, home_of_user
from tests.pool import REPOSITORY

MODULES = ("conformance", "floods", "hiding", "kernel", "kernel_objects", "reach")
CHOSEN = "(bubblewrap or bubble) and not results_is_bounded and not file_systems and not between_two_looks"
"""Bounds that the kernel holds by size, or the watch by names that it can see, are the same for all users."""


@pytest.mark.slow
def test_every_attack_fails_as_an_ordinary_user_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user anyway")
    with home_of_user() as home:
        modules = [f"tests/sandbox/test_{name}.py" for name in MODULES]
        options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-k", CHOSEN]
        done = subprocess.run(
            command(sys.executable, "-m", "pytest", *options, "--basetemp", str(home / "tests"), *modules),
            cwd=REPOSITORY,
            env=environment(home, PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) > 20, done.stdout[-2000:]
