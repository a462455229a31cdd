"""What a node says of itself."""

from __future__ import annotations

from msgspec import Struct

from fallow.model.ids import NodeId


class Device(Struct, frozen=True):
    """A GPU. CPU slots are counted, not listed."""

    kind: str
    model: str
    memory_bytes: int
    uuid: str = ""
    vendor: str = "nvidia"
    driver: str = ""
    speed: float = 0.0
    """Measured, in Gflop/s of the benchmark's matrix product; 0: not measured."""
    fault: str = ""
    """Why it is given to nobody now, in words; '': it is."""


class NodeSpec(Struct, frozen=True):
    """Sent with the first heartbeat of a session and on change."""

    node_id: NodeId
    name: str
    slots: int
    cpu_count: int
    memory_bytes: int
    disk_free_bytes: int
    platform: str
    pythons: tuple[str, ...]
    """Minor versions that environments can be built for, the agent's own first."""
    version: str
    devices: tuple[Device, ...] = ()
    host: str = ""
    pid: int = 0
    tier: int = 0
    """The best tier of sandbox that was probed to work and that the owner's settings choose (model.tiers.Tier)."""
    least_tier: int = 0
    """Jobs run here in a sandbox of at least this tier, whatever they ask for."""
    network: bool = True
    """Jobs that ask for the network may have it."""
    speed: float = 0.0
    """One slot's measured speed, relative to the benchmark's reference machine; 0: not measured."""
    shares_gpus: bool = True
    """A GPU may be given to several tasks at once (own pools only)."""
    seeks_pythons: bool = False
    """This machine has not been searched for other Pythons yet: `pythons` may grow within a minute or so."""


class NodeInfo(Struct, frozen=True):
    """What listings show of a node."""

    spec: NodeSpec
    state: str
    reason: str
    seen_unix_s: float
    busy_slots: int = 0
    jobs: dict[str, int] = {}
    """Slots by job id."""
    tasks_done: int = 0
    load: float = 0.0
    memory_used_bytes: int = 0
    wasted_s: float = 0.0
    """Seconds of work that were lost to preemption, since the leader began to count."""
    paused: str = ""
    """Why the owner's rules let nothing run now; '': they do."""
