"""Every backend that works on this machine; one that does not skips aloud with its probe's words."""

from __future__ import annotations

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


def working(name: str) -> Sandbox:
    """Skips where the machine cannot have it."""
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
