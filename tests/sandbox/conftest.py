"""Every backend that works on this machine; one that does not skips aloud with its probe's words."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox.choose import BACKENDS
from fallow.sandbox.protocol import Sandbox

from .boxes import Box

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]

_BUILT: dict[str, Sandbox] = {}
# Starting gVisor takes half a second.
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name == "gvisor" else name for name in BACKENDS]
ISOLATING = [given for given in EVERY if given != "process"]


# Of podman's and gVisor's tests, where there is no time for all of them: what would be worst if it did not hold.
TELLING = (
    "test_no_attempt_on_the_kernel_succeeds",
    "test_home_and_keys_cannot_be_read_by_any_way_in",
    "test_no_neighbour_on_the_machine_is_reached",
    "test_forks_stop_at_the_limit",
    "test_signals_reach_the_program_itself",
    "test_nothing_is_left_behind",
    "test_temporary_files_may_be_written",
)


def in_haste(name: str) -> bool:
    """Whether the test that runs now is left out for this backend."""
    running = os.environ.get("PYTEST_CURRENT_TEST", "")
    return (
        bool(os.environ.get("FALLOW_TELLING_TESTS"))
        and name in ("podman", "gvisor")
        and not any(f"::{test}[" in running for test in TELLING)
    )


def working(name: str) -> Sandbox:
    """Skips where the machine cannot have it."""
    if in_haste(name):
        pytest.skip(f"{name}: FALLOW_TELLING_TESTS asks for the most telling tests of it alone")
    if name not in _BUILT:
        _BUILT[name] = BACKENDS[name](SandboxSettings(backend=name))
    probe = _BUILT[name].probe()
    if not probe.works:
        pytest.skip(f"{name}: {probe.words} {probe.remedy}")
    return _BUILT[name]


def _box(name: str, tmp_path: Path) -> Box:
    return Box(working(name), tmp_path)


@pytest.fixture(params=EVERY)
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Box:
    """Any backend."""
    return _box(request.param, tmp_path)


@pytest.fixture(params=ISOLATING)
def jail(request: pytest.FixtureRequest, tmp_path: Path) -> Box:
    """Backends that claim to isolate."""
    made = _box(request.param, tmp_path)
    assert made.sandbox.tier >= Tier.ISOLATED
    return made


@pytest.fixture
def bubble(tmp_path: Path) -> Box:
    return _box("bubblewrap", tmp_path)
