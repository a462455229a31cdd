"""What a machine is found to be and what it would lend: shown by `fallow join`, each thing as soon as it is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

import fallow
from fallow.agent.devices.found import device_words
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
    gpu_problem: str = ""
    """What is wrong with the drivers of GPUs."""
    network: Network = Network()
    sandbox: dict[str, Any] = {}
    scores: dict[str, Any] = {}


def survey(settings: LendingSettings, home: Path, slots: int) -> Survey:
    """What is known at once: on Apple's machines after some seconds. Blocks."""
    found = probe_node(NodeId(""), "", cpu_count(), home, fallow.__version__)
    if sys.platform == "darwin":
        from fallow.agent.devices.apple import apple_devices

        found = msgspec.structs.replace(found, devices=(*found.devices, *apple_devices(found.memory_bytes)))
    lent = lent_spec(
        msgspec.structs.replace(found, slots=lent_slots(settings, found.cpu_count, slots)),
        settings,
    )
    return Survey(found=found, lent=lent, cpu_model=cpu_model(), gpu_problem=device_words())


def with_sandbox(seen: Survey, settings: LendingSettings, own_pool: bool) -> Survey:
    """Tries the sandbox that would be used: some tenths of a second. Blocks."""
    return msgspec.structs.replace(seen, sandbox=_sandbox(settings, own_pool))


async def with_network(seen: Survey, address: PoolAddress) -> Survey:
    """Measures the way to the pool, for about a second."""
    return msgspec.structs.replace(seen, network=await measure_network(address))


async def with_scores(seen: Survey, home: Path) -> Survey:
    """Runs the benchmark, for about a second: nothing where this very hardware was measured of late."""
    return msgspec.structs.replace(seen, scores=await _scores(home, seen.lent))


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


async def _scores(home: Path, spec: NodeSpec) -> dict[str, Any]:
    """Kept ones of this very hardware, or new ones: about a second."""
    from fallow.agent.devices.benchmark import measured

    scores = await measured(home, spec, BENCHMARK_S)
    built: dict[str, Any] = msgspec.to_builtins(scores) if scores is not None else {}
    return built
