"""How `fallow node` shows things to the owner of the machine."""

from __future__ import annotations

import time
from typing import Any

from fallow.cli.show import bytes_words, count_words, duration_words, print_table
from fallow.core.quantities import size_words
from fallow.core.terminal import harmless, name_words

ALMOST_ALL = 0.995
STATE_WORDS = {
    "working": "working",
    "idle": "ready, with nothing to do",
    "paused": "paused",
    "draining": "draining",
    "away": "away from the pool",
}


def status_lines(body: dict[str, Any], now_unix_s: float, number: int, several: bool) -> list[str]:
    """One agent, for people."""
    title = f"{body['node']} ({body['node_id']})" + (f", agent {number} of this home" if several else "")
    since = duration_words(now_unix_s - body["since_unix_s"])
    state = STATE_WORDS.get(body["state"], body["state"])
    reason = f": {body['reason']}" if body["reason"] else ""
    ends = f"; it goes on in {duration_words(body['paused_for_s'])}" if body["paused_for_s"] else ""
    lines = [title, f"  state     {state}{reason} (for {since}){ends}"]
    lost = f", {duration_words(body['wasted_s'])} of work lost to pauses" if body["wasted_s"] else ""
    done = f"{count_words(body['tasks_done'])} tasks done{lost}"
    lines.append(f"  slots     {body['busy_slots']} of {body['slots']} busy; {done}")
    for job in body["jobs"]:
        gpus = f", {job['gpus']} GPU" if job["gpus"] else ""
        name = name_words(job["name"] or job["job_id"])
        lines.append(
            f"  runs      {name} on {job['workers']} slot{_s(job['workers'])}{gpus} for "
            f"{duration_words(now_unix_s - job['since_unix_s'])}, its longest task for "
            f"{duration_words(job['longest_task_s'])}"
        )
    for when in ("today", "total"):
        lines.append(f"  {when:<9} {_worked_words(body['worked'][when])}")
    first, *further = _hour_words(body["worked"]["an_hour"])
    lines += [f"  an hour   {first}", *(f"            {words}" for words in further)]
    lines += [f"  watch     {words}" for words in _watch_words(body["watch"])]
    lines += _machine_lines(body["machine"])
    lines.append(f"  sandbox   {_sandbox_words(body['sandbox'])}")
    lines.append(f"  limits    {_limit_words(body['limits'])}")
    if body["settings"]["problem"]:
        lines.append(f"  settings  NOT in force as they are now, the ones before are: {body['settings']['problem']}")
    else:
        lines.append(f"  settings  {body['settings']['file']}")
    # Reasons name programs and people as they call themselves.
    return [harmless(line.replace("\r", " ")) for line in lines]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _worked_words(worked: dict[str, Any]) -> str:
    words = f"{duration_words(worked['slot_s'])} of slots"
    if worked["gpu_s"]:
        words += f", {duration_words(worked['gpu_s'])} of GPUs"
    words += f", {count_words(worked['tasks'])} tasks"
    if earn := worked["would_earn"]:
        words += f"; would earn {earn['amount']:.{2 if earn['amount'] >= 0.1 else 4}f} {earn['currency']}"
    return words


def _hour_words(hour: dict[str, Any]) -> list[str]:
    """What all that is lent would earn, and by which prices, line by line."""
    words = []
    if hour["basis"]:
        words.append(f"of all that is lent would earn {hour['amount']:.2f} {hour['currency']}:")
        words += hour["basis"].split("; ")
    return [*words, *([hour["unpriced"]] if hour["unpriced"] else [])]


def _watch_words(owner: dict[str, Any] | None) -> list[str]:
    """What the watch for the owner has to say beyond the reason of a pause."""
    if owner is None:
        return []
    return [*owner["notes"], *owner["troubles"]]


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    heat = f", processor at {machine['cpu_c']:.0f} °C" if machine["cpu_c"] else ""
    memory = f"{bytes_words(machine['memory_used_bytes'])} of {bytes_words(machine['memory_bytes'])} of memory in use"
    lines = [f"  machine   load {machine['load']:.2f} on {machine['cpu_count']} processors, {memory}{heat}"]
    for number, gpu in enumerate(machine["gpus"]):
        parts = [gpu["model"]]
        if gpu["fault"]:
            parts.append(f"out: {gpu['fault']}")
        elif gpu["paused"]:
            parts.append(f"paused: {gpu['paused']}")
        if gpu.get("share") is not None:
            parts.append(f"{gpu['share']:.0%} busy")
        if gpu.get("temperature_c") is not None:
            parts.append(f"{gpu['temperature_c']:.0f} °C")
        if gpu.get("power_w") is not None:
            parts.append(f"{gpu['power_w']:.0f} W")
        lines.append(f"  gpu {number:<5} {', '.join(parts)}")
    if machine["gpu_problem"]:
        lines.append(f"  gpu       {machine['gpu_problem']}")
    for device, share in machine["duty"].items():
        if share < ALMOST_ALL:
            lines.append(f"  held to   {share:.0%} of each second on {device}, by your limits")
    return lines


def _sandbox_words(sandbox: dict[str, Any]) -> str:
    from fallow.model.tiers import Tier

    tier, least = Tier(sandbox["tier"]).word, Tier(sandbox["least_tier"]).word
    if sandbox["tier"] == Tier.PROCESS:
        return "none: tasks are plain processes of your user (a pool of your own)"
    return f"{tier} (nothing below {least} runs); `fallow node sandbox` shows its layers"


def _limit_words(limits: dict[str, Any]) -> str:
    """Those that limit something."""
    shown = {
        "share.cpu": "CPU {}",
        "share.memory": "memory {}",
        "share.disk": "disk {}",
        "share.up": "up {}",
        "share.down": "down {}",
        "gpu.power_limit": "GPU {}",
        "gpu.temperature_limit": "GPU {}",
        "heat.cpu_limit": "processor {}",
        "price.limit_per_kwh": "{} a kWh",
    }
    parts = [words.format(limits[name]) for name, words in shown.items() if limits[name] not in ("0", "0 %", 0, 0.0)]
    if limits["owner.hours"]:
        parts.append(f"only {', '.join(limits['owner.hours'])}")
    return "; ".join(parts) or "none"


def print_limits(limits: dict[str, Any], file: str) -> None:
    """Every setting, with what it means; a star where it is not the default."""
    from fallow.core.setting_keys import KEYS
    from fallow.model.lending import LendingSettings

    defaults = LendingSettings()
    rows = []
    for key in KEYS:
        value = limits[key.path]
        changed = "*" if value != key.of(defaults) else ""
        rows.append([changed, key.path, value_words(value), key.about])
    print_table(["", "SETTING", "VALUE", "MEANING"], rows, "")
    print(f"\n* set in {file}. Change one: fallow node limits owner.idle='5 min' (nothing after = for the default).")


def value_words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return str(value) or "-"


def print_caches(body: dict[str, Any], now_unix_s: float) -> None:
    rows = [
        [
            one["kind"],
            one["name"],
            size_words(one["size_bytes"]),
            "in use" if one["in_use"] else f"{duration_words(now_unix_s - one['used_unix_s'])} ago",
        ]
        for one in body["kept"]
    ]
    print_table(["KIND", "NAME", "SIZE", "USED"], rows, "Nothing is kept.")
    limit = f" of {size_words(body['limit_bytes'])} lent" if body["limit_bytes"] else ""
    tasks = f", and {size_words(body['scratch_bytes'])} of running tasks" if body["scratch_bytes"] else ""
    print(f"{size_words(body['kept_bytes'])}{limit}{tasks}.")


def print_probes(body: dict[str, Any]) -> None:
    """What was tried, layer by layer, with the remedy where one does not work."""
    for probe in body["probes"]:
        from fallow.model.tiers import Tier

        works = f"works, tier {Tier(probe['tier']).word}" if probe["works"] else "does not work"
        print(f"{probe['backend']}: {works}{'. ' + probe['words'] if probe['words'] else ''}")
        if not probe["works"] and probe["remedy"]:
            print(f"    {probe['remedy']}")
        for layer in probe["layers"]:
            print(f"  {'+' if layer['works'] else '-'} {layer['name']:<14} {layer['words']}".rstrip())
            if not layer["works"] and layer["remedy"]:
                print(f"      {layer['remedy']}")
    print(f"Chosen: {body['chosen']} (sandbox.backend); nothing below {body['least']} runs (sandbox.least).")


def clock_words(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))
