"""What a machine is found to be and what it would lend: shown by `fallow join` before it lends anything."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

import fallow
from fallow.agent.limits.offer import lent_slots, lent_spec
from fallow.agent.network import Network, measure_network
from fallow.agent.probe import cpu_count, probe_node
from fallow.model.errors import FallowError
from fallow.model.ids import NodeId
from fallow.model.lending import LendingSettings
from fallow.model.node import NodeSpec
from fallow.wire.address import PoolAddress

BENCHMARK_S = 1.0


class Survey(Struct, frozen=True):
    """`found`: the machine. `lent`: what of it the pool gets. `scores`: the benchmark's, as its module names them."""

    found: NodeSpec
    lent: NodeSpec
    cpu_model: str
    network: Network
    sandbox: dict[str, Any]
    scores: dict[str, Any]


def survey(
    address: PoolAddress,
    settings: LendingSettings,
    home: Path,
    slots: int,
    own_pool: bool,
    measure: bool,
) -> Survey:
    """Looks, and where `measure` also measures: about two seconds. Blocks."""
    found = probe_node(NodeId(""), "", cpu_count(), home, fallow.__version__)
    lent = lent_spec(
        msgspec.structs.replace(found, slots=lent_slots(settings, found.cpu_count, slots)),
        settings,
    )
    return Survey(
        found=found,
        lent=lent,
        cpu_model=cpu_model(),
        network=asyncio.run(measure_network(address)) if measure else Network(),
        sandbox=_sandbox(settings, own_pool),
        scores=_scores(home, lent) if measure else {},
    )


def cpu_model() -> str:
    """As the processor calls itself; '' where it does not say."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor()


def _sandbox(settings: LendingSettings, own_pool: bool) -> dict[str, Any]:
    """The probe of the sandbox that would be used; `problem` where none can be had."""
    from fallow.sandbox.choose import choose

    try:
        probe = choose(settings.sandbox, own_pool).probe()
    except FallowError as error:
        return {"problem": str(error)}
    built: dict[str, Any] = msgspec.to_builtins(probe)
    return built


def _scores(home: Path, spec: NodeSpec) -> dict[str, Any]:
    """Kept ones of this very hardware, or new ones: about a second."""
    from fallow.agent.devices.benchmark import measured

    scores = asyncio.run(measured(home, spec, BENCHMARK_S))
    built: dict[str, Any] = msgspec.to_builtins(scores) if scores is not None else {}
    return built
