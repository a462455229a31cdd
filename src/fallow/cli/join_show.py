"""How `fallow join` shows what it found: a line for each thing as soon as it is known, or JSON for programs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fallow.cli.show import as_plain, bytes_words, print_json
from fallow.core.quantities import size_words, write_rate, write_share, write_size
from fallow.model.lending import LendingSettings
from fallow.model.tiers import Tier
from fallow.wire.address import PoolAddress
from fallow.wire.messages import PoolInfo

if TYPE_CHECKING:
    from fallow.agent.survey import Survey

STOP_WITHIN_S = 3.0


Row = tuple[str, str, str]
"""What, what was found of it, what of that is lent."""
WHAT_WIDTH = 10


class Show:
    """What `fallow join` finds and lends, told row by row. `file`: where the owner changes what is lent."""

    def __init__(self, settings: LendingSettings, home: Path, address: PoolAddress, file: str) -> None:
        self._settings, self._home, self._address, self._file = settings, home, address, file
        self._seen: Survey | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def look(self, slots: int, own_pool: bool, quiet: bool) -> None:
        """What is known within moments."""
        from fallow.agent.survey import survey, with_sandbox

        self._seen = survey(self._settings, self._home, slots)
        if not quiet:
            print_rows(machine_rows(self._seen, self._settings))
        self._seen = with_sandbox(self._seen, self._settings, own_pool)
        if not quiet:
            print_rows(_sandbox_rows(self._seen.sandbox))
            print(f"Change what is lent in {self._file}", flush=True)

    def measure(self, quiet: bool) -> None:
        """The way to the pool, and the benchmark. Blocks for about two seconds."""
        asyncio.run(self._measure(quiet))

    async def _measure(self, quiet: bool) -> None:
        from fallow.agent.survey import with_network, with_scores

        assert self._seen is not None
        self._seen = await with_network(self._seen, self._address)
        if not quiet:
            print_rows([("network", _network_words(self._seen), _rate_words(self._settings))])
        self._seen = await with_scores(self._seen, self._home)
        if self._seen.scores and not quiet:
            print_rows([("benchmark", _score_words(self._seen.scores), "")])

    def start_measuring(self) -> None:
        """The same while the agent starts, in a thread of its own."""
        self._thread = threading.Thread(target=self._measure_in_thread, name="survey", daemon=True)
        self._thread.start()

    def _measure_in_thread(self) -> None:
        with asyncio.Runner() as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._measure_until_told())

    async def _measure_until_told(self) -> None:
        self._measuring = asyncio.ensure_future(self._measure(False))
        self._loop = asyncio.get_running_loop()
        await self._measuring

    def stop_measuring(self) -> None:
        """The agent has ended: whatever is still measured is left."""
        thread, loop, measuring = self._thread, self._loop, self._measuring
        if thread is None:
            return
        if loop is not None and measuring is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(measuring.cancel)
        thread.join(STOP_WITHIN_S)

    def print_json(self, pool: PoolInfo) -> None:
        assert self._seen is not None
        body = as_plain(self._seen)
        print_json({"pool": pool.name, "settings": self._file, **body, "network": as_plain(self._seen.network)})


def print_rows(rows: list[Row]) -> None:
    """A line for each, or two where what is lent has no room beside what was found."""
    width = shutil.get_terminal_size((100, 24)).columns
    for what, found, lent in rows:
        line = f"  {what:<{WHAT_WIDTH}}{found}"
        if lent and len(line) + len(lent) + 4 > width:
            line += "\n" + " " * (WHAT_WIDTH + 2)
        print(line + (f"{' -> ' if found else ''}{lent}" if lent else ""), flush=True)


def machine_rows(seen: Survey, settings: LendingSettings) -> list[Row]:
    """What needs no measurement, in words."""
    found, lent, share = seen.found, seen.lent, settings.share
    slots = f"{lent.slots} task{'' if lent.slots == 1 else 's'} at a time, lowest priority"
    if share.cpu_share:
        slots += f", at most {write_share(share.cpu_share)}"
    rows = [
        ("CPU", f"{found.cpu_count} x {seen.cpu_model or found.platform}", slots),
        ("memory", bytes_words(found.memory_bytes), f"{bytes_words(lent.memory_bytes)} in all"),
        (
            "disk",
            f"{size_words(found.disk_free_bytes)} free",
            f"{write_size(share.disk_bytes)} at most" if share.disk_bytes else "all that is free",
        ),
    ]
    names = {device.uuid for device in lent.devices}
    for device in found.devices:
        driver = f", driver {device.driver}" if device.driver else ""
        words = f"{device.model}, {bytes_words(device.memory_bytes)}{driver}"
        rows.append(("GPU", words, "lent" if device.uuid in names else "not lent"))
    if seen.gpu_problem or not found.devices:
        rows.append(("GPU", seen.gpu_problem or "none found", ""))
    rows.append(("when", "", _when_words(settings)))
    return rows


def _network_words(seen: Survey) -> str:
    network = seen.network
    if network.problem:
        return network.problem
    if not network.up_bytes_per_s:
        return "not measured"
    least = "at least " if network.down_at_least else ""
    return (
        f"{_megabytes(network.up_bytes_per_s)} up, {least}{_megabytes(network.down_bytes_per_s)} down, "
        f"{network.round_trip_s * 1000:.1f} ms to the pool"
    )


def _megabytes(rate: float) -> str:
    return f"{rate / 1e6:.0f} MB/s" if rate >= 1e7 else f"{rate / 1e6:.1f} MB/s"


def _rate_words(settings: LendingSettings) -> str:
    up, down = settings.share.up_bytes_per_s, settings.share.down_bytes_per_s
    parts = [f"{write_rate(rate)} {way}" for rate, way in ((up, "up"), (down, "down")) if rate]
    return ", ".join(parts) or "no limit"


def _sandbox_rows(sandbox: dict[str, Any]) -> list[Row]:
    if not sandbox:
        return []
    if problem := sandbox.get("problem"):
        return [("sandbox", str(problem), "nothing runs here")]
    works = [layer["name"] for layer in sandbox.get("layers", ()) if layer["works"]]
    if Tier(sandbox["tier"]) is Tier.PROCESS:
        return [("sandbox", "none: tasks are plain processes of your user", "a pool of your own")]
    found = sandbox["backend"] + (f": {', '.join(works)}" if works else "")
    return [("sandbox", found, f"tier {Tier(sandbox['tier']).word}")]


def _score_words(scores: dict[str, Any]) -> str:
    parts = [f"a slot runs at {scores['speed']:.2f} of the reference machine"]
    if scores["memory_bytes_per_s"]:
        parts.append(f"memory {scores['memory_bytes_per_s'] / 1e9:.1f} GB/s")
    if scores["disk_bytes_per_s"]:
        parts.append(f"disk {scores['disk_bytes_per_s'] / 1e6:.0f} MB/s")
    parts += [f"GPU {speed:,.0f} Gflop/s" for speed in scores["gpus"].values()]
    parts += [f"GPU not measured: {words}" for words in scores["gpu_words"].values()]
    return ", ".join(parts)


def _when_words(settings: LendingSettings) -> str:
    from fallow.core.quantities import write_hours, write_time

    owner = settings.owner
    words = f"after {write_time(owner.idle_s)} without input" if owner.watch else "always, nobody sits here"
    if owner.hours:
        words += f", only {', '.join(write_hours(hours) for hours in owner.hours)}"
    return words
