"""Picks the sandbox that settings ask for, tried on this machine; refuses rather than doing with less."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox.protocol import Probe, Sandbox
from fallow.sandbox.system import refuse_homes


def _plain(settings: SandboxSettings) -> Sandbox:
    from fallow.sandbox.plain import PlainSandbox

    return PlainSandbox()


def _bubblewrap(settings: SandboxSettings) -> Sandbox:
    from fallow.sandbox.bubblewrap import BubblewrapSandbox

    return BubblewrapSandbox()


def _podman(settings: SandboxSettings) -> Sandbox:
    from fallow.sandbox.podman import PodmanSandbox

    return PodmanSandbox(settings)


def _gvisor(settings: SandboxSettings) -> Sandbox:
    from fallow.sandbox.gvisor import GvisorSandbox

    return GvisorSandbox(settings)


BACKENDS: dict[str, Callable[[SandboxSettings], Sandbox]] = {
    "process": _plain,
    "bubblewrap": _bubblewrap,
    "podman": _podman,
    "gvisor": _gvisor,
}
AUTOMATIC = ("bubblewrap", "gvisor")
"""Of these the first that gives the least tier is tried, and no other."""


def choose(settings: SandboxSettings, own_pool: bool) -> Sandbox:
    """The backend to use, probed. `own_pool`: every customer is oneself, and a plain process will do unless a
    backend is named.

    Raises SandboxUnavailable with what would help, where it does not work or is below the least tier.
    """
    if settings.backend != "auto" and settings.backend not in BACKENDS:
        raise SandboxUnavailable(
            f"There is no sandbox {settings.backend!r}.", f"There are: auto, {', '.join(BACKENDS)}."
        )
    if own_pool:
        least = Tier.PROCESS
        names: tuple[str, ...] = ("process",) if settings.backend == "auto" else (settings.backend,)
    else:
        least = settings.least
        names = _automatic(least, settings) if settings.backend == "auto" else (settings.backend,)
    if names != ("process",):
        from fallow.sandbox.sweep import sweep_machine

        sweep_machine()
        if sys.prefix != sys.base_prefix:
            refuse_homes(sys.prefix)
    failed: list[Probe] = []
    for name in names:
        sandbox = BACKENDS[name](settings)
        if sandbox.tier < least:
            raise SandboxUnavailable(
                f"Strangers' code runs here in the tier '{least.word}' or above; {name} gives '{sandbox.tier.word}'.",
                "Choose another backend, or, for a pool whose every customer is yourself, say --own-pool.",
            )
        probe = sandbox.probe()
        if probe.works and probe.tier >= least:
            return sandbox
        failed.append(probe)
    raise SandboxUnavailable(
        " ".join(f"{probe.backend} does not work here: {probe.words.rstrip('.')}." for probe in failed),
        " ".join(dict.fromkeys(probe.remedy for probe in failed if probe.remedy)),
    )


def _automatic(least: Tier, settings: SandboxSettings) -> tuple[str, ...]:
    return (next((name for name in AUTOMATIC if BACKENDS[name](settings).tier >= least), AUTOMATIC[-1]),)


def probe_all(settings: SandboxSettings) -> list[Probe]:
    """Every backend, tried, for people to read."""
    return [build(settings).probe() for build in BACKENDS.values()]
