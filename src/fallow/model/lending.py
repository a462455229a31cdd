"""What the owner of a machine lends of it, when, and how much: the settings file as data.

Sizes are bytes, rates bytes per second, times seconds, shares between 0 and 1, temperatures degrees Celsius, power
watts. 0 means 'no limit' where a field says so.
"""

from __future__ import annotations

from msgspec import Struct

from fallow.model.tiers import Tier


class Hours(Struct, frozen=True):
    """From `start_minute` to `stop_minute` after local midnight on the days (0 is Monday); past midnight where stop
    lies before start."""

    days: tuple[int, ...]
    start_minute: int
    stop_minute: int


class OwnerSettings(Struct, frozen=True):
    """When the machine counts as its owner's. Work stops within two seconds of what any of these say."""

    watch: bool = True
    """False: a machine that nobody sits at (a server): input, sessions and full-screen programs are not looked at."""
    idle_s: float = 180.0
    """Without input for so long: the owner is away."""
    gpu_idle_s: float = 180.0
    busy_cpu_share: float = 0.25
    """Other programs use more than this share of the CPU: work pauses."""
    resume_cpu_share: float = 0.15
    """It goes on when they use less than this (hysteresis)."""
    settle_s: float = 30.0
    """What made work pause must have been over for so long before it goes on."""
    foreign_gpu_share: float = 0.10
    """Another program uses more than this share of a GPU: that GPU pauses."""
    foreign_gpu_memory_bytes: int = 1 << 30
    full_screen: bool = True
    remote_sessions: bool = True
    """Somebody who is logged in from elsewhere and active counts as the owner."""
    on_battery: bool = False
    """Work goes on while the machine runs on its battery."""
    on_metered: bool = False
    exclusive_programs: tuple[str, ...] = ()
    """While a program of such a name runs, nothing else does."""
    gpu_exclusive_programs: tuple[str, ...] = ()
    hours: tuple[Hours, ...] = ()
    """Work only then; none: at any time."""
    grace_s: float = 1.2
    """From the notice to a task until it is killed; at most 1.5."""


class ShareSettings(Struct, frozen=True):
    """How much is lent. 0: all of it."""

    slots: int = 0
    cpu_share: float = 0.0
    """Of all processors together."""
    memory_bytes: int = 0
    disk_bytes: int = 20 * 10**9
    """For environments, code, data and what tasks write, together."""
    nice: int = 19
    idle_io: bool = True
    up_bytes_per_s: int = 0
    down_bytes_per_s: int = 0


class GpuSettings(Struct, frozen=True):
    lend: bool = True
    models: tuple[str, ...] = ()
    """Only GPUs whose name holds one of these; none: all."""
    power_limit_w: float = 0.0
    temperature_limit_c: float = 0.0
    """Held by pausing the work on the GPU for parts of each second; 0: no limit of ours."""


class HeatSettings(Struct, frozen=True):
    cpu_limit_c: float = 90.0
    resume_below_c: float = 80.0


class PriceSettings(Struct, frozen=True):
    """Electricity. `source`: a file that holds the price for a kWh, or, after a '!', a command that prints it."""

    source: str = ""
    limit_per_kwh: float = 0.0
    """Work only while the price is at most this."""
    every_s: float = 300.0


class SandboxSettings(Struct, frozen=True):
    backend: str = "auto"
    """auto, process, bubblewrap, podman or gvisor."""
    least: Tier = Tier.ISOLATED
    """Nothing runs here below this tier. A pool that is one's own (`fallow up`, or --own-pool) runs plain processes."""
    network: bool = False
    """Jobs that ask for it may reach public addresses, and those alone."""
    task_disk_bytes: int = 2 * 10**9
    """What the tasks of one worker may write."""
    max_processes: int = 256
    rootfs: str = ""
    """podman and gVisor: a folder with a root file system. Empty: the host's /usr, read only."""
    index_hosts: tuple[str, ...] = ()
    """Hosts (`name` or `name:port`) of the owner's own package index: builds of environments reach them though their
    addresses are not public. Those that uv's settings name need not be repeated."""
    image: str = ""
    """podman: an image that is here already; nothing is pulled."""


class EarnSettings(Struct, frozen=True):
    """What an hour of work is worth, for `fallow node status`. Nothing is paid by these figures."""

    cpu_per_hour: float = 0.0
    """Of one CPU slot."""
    gpu_per_hour: float = 0.0
    """Of one GPU; 0: what marketplaces ask for its model (core.market)."""
    currency: str = "USD"


class LendingSettings(Struct, frozen=True):
    """All of node.toml, one section a field."""

    owner: OwnerSettings = OwnerSettings()
    share: ShareSettings = ShareSettings()
    gpu: GpuSettings = GpuSettings()
    heat: HeatSettings = HeatSettings()
    price: PriceSettings = PriceSettings()
    sandbox: SandboxSettings = SandboxSettings()
    earn: EarnSettings = EarnSettings()
