"""What the agent tells its owner, as plain data: numbers with their units in the names, words where a person reads."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from fallow.agent.devices.found import device_words
from fallow.agent.earnings import Worked, an_hour, worth
from fallow.agent.memory import private_bytes
from fallow.agent.probe import load_average, memory_bytes, memory_used_bytes
from fallow.core.setting_keys import KEYS
from fallow.model.lending import LendingSettings, SandboxSettings

if TYPE_CHECKING:
    from fallow.agent.caches import Usage
    from fallow.agent.lender import Lender

WORKING, IDLE, PAUSED, DRAINING, AWAY = "working", "idle", "paused", "draining", "away"


def status_report(lender: Lender) -> dict[str, Any]:
    """Everything that `fallow node status` and `top` show."""
    node, now_s = lender.node, time.monotonic()
    jobs = _jobs(lender)
    state, reason = lender.note_state()
    left_s = lender.paused_until_s - now_s if lender.paused_until_s is not None else None
    return {
        "node": node.name,
        "node_id": node.node_id,
        "pid": os.getpid(),
        "folder": str(lender.folder),
        "started_unix_s": lender.started_unix_s,
        "state": state,
        "reason": reason,
        "since_unix_s": lender.state_unix_s,
        "paused_for_s": round(left_s, 1) if left_s is not None and left_s != float("inf") else None,
        "slots": len(node.slots),
        "busy_slots": sum(1 for slot in node.slots if slot.is_busy),
        "jobs": jobs,
        "tasks_done": node.tasks_done,
        "wasted_s": round(node.wasted_s, 2),
        "worked": {
            "today": _worked(lender, lender.work.today),
            "total": _worked(lender, lender.work.total),
            "an_hour": an_hour(lender.settings.earn, len(node.slots), node.spec.devices),
        },
        "price": {"per_kwh": lender.price_per_kwh, "problem": lender.price_problem},
        "machine": _machine(lender),
        "sandbox": {
            "tier": node.spec.tier,
            "least_tier": node.spec.least_tier,
            "backend": lender.settings.sandbox.backend,
        },
        "watch": lender.watch.status() if lender.watch is not None else None,
        "limits": limits_in_force(lender.settings),
        "settings": {
            "file": str(lender.settings_file),
            "read_unix_s": lender.settings_unix_s,
            "problem": lender.settings_problem,
        },
    }


def state_now(lender: Lender) -> tuple[str, str]:
    """One of the states above, and its reason in words ('' where there is nothing to explain)."""
    works = lender.node.is_busy
    if lender.paused_until_s is not None:
        return PAUSED, "you paused it with `fallow node pause`"
    if lender.is_drained:
        return DRAINING, "you drained it with `fallow node drain`" + ("; it finishes what runs" if works else "")
    if lender.node.paused and lender.watch is not None:
        # Fresher than what the pool was told: how long ago the keyboard was used.
        return PAUSED, lender.watch.reason or lender.node.paused
    if lender.node.paused:
        return PAUSED, lender.node.paused.removeprefix("paused: ")
    link = lender.node.link
    if link is None or not link.is_connected:
        return AWAY, "the pool cannot be reached; it is tried again and again"
    if works:
        return WORKING, ""
    return IDLE, "the pool has no work for this machine now"


def _jobs(lender: Lender) -> list[dict[str, Any]]:
    """What runs, by job."""
    node = lender.node
    found: dict[str, dict[str, Any]] = {}
    for slot in node.slots:
        for lane in slot.lanes.values():
            held = lane.running
            if held is None:
                continue
            job = node.jobs.get(held.job_id)
            entry = found.setdefault(
                held.job_id,
                {
                    "job_id": held.job_id,
                    "name": job.spec.name if job is not None else "",
                    "workers": 0,
                    "gpus": 0,
                    "longest_task_s": 0.0,
                    "since_unix_s": round(lender.job_since.get(held.job_id, time.time()), 1),
                },
            )
            entry["workers"] += 1
            entry["gpus"] += len(node.gpu_uuids(lane))
            entry["longest_task_s"] = round(max(entry["longest_task_s"], lane.progress(held)[1]), 1)
    return list(found.values())


def _worked(lender: Lender, worked: Worked) -> dict[str, Any]:
    return {
        "slot_s": round(worked.cpu_s, 1),
        "gpu_s": round(worked.gpu_s, 1),
        "tasks": worked.tasks,
        "would_earn": worth(worked, lender.settings.earn, lender.node.spec.devices),
    }


def _machine(lender: Lender) -> dict[str, Any]:
    use = lender.keeper.use
    return {
        "cpu_count": lender.node.spec.cpu_count,
        "load": round(load_average(), 2),
        "cpu_percent": cpu_percent(),
        "memory_bytes": memory_bytes(),
        "memory_used_bytes": memory_used_bytes(),
        "cpu_c": cpu_temperature_c(),
        "gpus": _gpus(lender),
        "gpu_problem": device_words(),
        "agent_memory_bytes": private_bytes(os.getpid()),
        "work_cpu_share": use.cpu_share,
        "work_memory_bytes": use.memory_bytes,
        "duty": lender.keeper.duties.shares,
    }


def _gpus(lender: Lender) -> list[dict[str, Any]]:
    """Those that are lent, with what their driver tells now."""
    devices = lender.node.spec.devices
    if not devices:
        return []
    from fallow.agent.devices.nvml import nvml

    readings = nvml().readings()
    watched = lender.watch.status()["devices"] if lender.watch is not None else {}
    found = []
    for device in devices:
        now = readings.get(device.uuid)
        found.append(
            {
                "model": device.model,
                "uuid": device.uuid,
                "memory_bytes": device.memory_bytes,
                "driver": device.driver,
                "fault": device.fault,
                "paused": watched[device.uuid]["reason"] if device.uuid in watched else "",
                "share": now.utilisation if now is not None else None,
                "temperature_c": now.temperature_c if now is not None else None,
                "power_w": now.power_w if now is not None else None,
                "memory_free_bytes": now.memory_free_bytes if now is not None else None,
            }
        )
    return found


def cpu_percent() -> float:
    """Of all processors, by all programs, since the last question (whoever asks first hears 0)."""
    import psutil

    return float(psutil.cpu_percent())


def cpu_temperature_c() -> float | None:
    """The warmest of the processor's sensors; None where there is none."""
    import psutil

    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None
    chips = [chip for chip in sensors if chip in ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal")]
    found = [reading.current for chip in chips for reading in sensors[chip] if reading.current]
    return round(max(found), 1) if found else None


def limits_in_force(settings: LendingSettings) -> dict[str, Any]:
    """Every setting as the file writes it."""
    return {key.path: key.of(settings) for key in KEYS}


def cache_report(usage: Usage, limit_bytes: int) -> dict[str, Any]:
    """What is kept, newest use first."""
    kept = sorted(usage.kept, key=lambda one: -one.used_unix_s)
    return {
        "limit_bytes": limit_bytes,
        "kept_bytes": usage.kept_bytes,
        "scratch_bytes": usage.scratch_bytes,
        "kept": [
            {
                "kind": one.kind,
                "name": one.name,
                "size_bytes": one.size_bytes,
                "used_unix_s": round(one.used_unix_s, 1),
                "in_use": one.in_use,
            }
            for one in kept
        ],
    }


def probe_report(settings: SandboxSettings) -> dict[str, Any]:
    """What keeps the work apart on this machine, layer by layer. Blocks while it is tried."""
    import msgspec

    from fallow.sandbox.choose import probe_all

    return {
        "chosen": settings.backend,
        "least": settings.least.word,
        "probes": [msgspec.to_builtins(probe) for probe in probe_all(settings)],
    }
