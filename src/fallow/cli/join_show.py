"""How `fallow join` shows what it found: a table in a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fallow.cli.show import as_plain, bytes_words, print_json
from fallow.core.quantities import size_words, write_rate, write_share, write_size
from fallow.model.lending import LendingSettings
from fallow.model.tiers import Tier
from fallow.wire.messages import PoolInfo

if TYPE_CHECKING:
    from fallow.agent.survey import Survey


def print_survey(seen: Survey, settings: LendingSettings, pool: PoolInfo, file: str, as_json: bool) -> None:
    if as_json:
        body = as_plain(seen)
        print_json({"pool": pool.name, "settings": file, **body, "network": as_plain(seen.network)})
        return
    rows = survey_rows(seen, settings)
    if not sys.stdout.isatty():
        for what, found, lent in rows:
            print(f"  {what:<9} {found}" + (f"  ->  {lent}" if lent else ""))
        print(f"Change what is lent in {file}", flush=True)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in ("", "found here", "lent to the pool"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(f"Change what is lent in {file}", flush=True)


def survey_rows(seen: Survey, settings: LendingSettings) -> list[tuple[str, str, str]]:
    """(what, found, lent) in words."""
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
    if not found.devices:
        rows.append(("GPU", "none found", ""))
    rows.append(("network", _network_words(seen), _rate_words(settings)))
    rows += _sandbox_rows(seen.sandbox)
    if seen.scores:
        rows.append(("benchmark", _score_words(seen.scores), ""))
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


def _sandbox_rows(sandbox: dict[str, Any]) -> list[tuple[str, str, str]]:
    if not sandbox:
        return []
    if problem := sandbox.get("problem"):
        return [("sandbox", str(problem), "nothing runs here")]
    works = [layer["name"] for layer in sandbox.get("layers", ()) if layer["works"]]
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
