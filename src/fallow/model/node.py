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
