"""How long this machine has worked, by day, and what that would be worth."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from fallow.core.market import FEE_SHARE, earned_per_hour, price_of
from fallow.model.lending import EarnSettings
from fallow.model.node import Device
from fallow.wire.address import write_private

FILE_NAME = "worked.json"
DAYS_LIMIT = 400


class Worked(Struct):
    """Seconds of slots and of GPUs, and tasks."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    tasks: int = 0

    def add(self, cpu_s: float, gpu_s: float, tasks: int) -> None:
        self.cpu_s += cpu_s
        self.gpu_s += gpu_s
        self.tasks += tasks


class WorkBook:
    """Kept in the agent's folder. A file that cannot be read is begun anew: nothing is paid by it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self.total = Worked()
        self.days: dict[str, Worked] = {}
        self._dirty = False
        try:
            data = json.loads(self._path.read_text())
            self.total = Worked(*data["total"])
            self.days = {str(day): Worked(*worked) for day, worked in data["days"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def add(self, cpu_s: float, gpu_s: float, tasks: int) -> None:
        if cpu_s or gpu_s or tasks:
            self.total.add(cpu_s, gpu_s, tasks)
            self.days.setdefault(_today(), Worked()).add(cpu_s, gpu_s, tasks)
            self._dirty = True

    @property
    def today(self) -> Worked:
        return self.days.get(_today(), Worked())

    def save(self) -> None:
        """Blocks for the write of a small file; nothing where nothing has changed."""
        if not self._dirty:
            return
        self._dirty = False
        kept = dict(sorted(self.days.items())[-DAYS_LIMIT:])
        days = {day: _row(worked) for day, worked in kept.items()}
        write_private(self._path, json.dumps({"total": _row(self.total), "days": days}))


def _row(worked: Worked) -> list[float]:
    return [round(worked.cpu_s, 1), round(worked.gpu_s, 1), worked.tasks]


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def worth(worked: Worked, settings: EarnSettings, devices: tuple[Device, ...]) -> dict[str, Any] | None:
    """{'amount', 'currency', 'basis'}: at the owner's own prices, else at what marketplaces ask for the cards. None
    where no price is known."""
    amount, basis = 0.0, []
    currency = settings.currency
    if settings.cpu_per_hour:
        amount += worked.cpu_s / 3600 * settings.cpu_per_hour
        basis.append(f"{settings.cpu_per_hour:g} {currency} an hour of a slot, as node.toml says")
    if settings.gpu_per_hour:
        amount += worked.gpu_s / 3600 * settings.gpu_per_hour
        basis.append(f"{settings.gpu_per_hour:g} {currency} an hour of a GPU, as node.toml says")
    elif devices and currency == "USD":
        priced = {one.model: price for one in devices if (price := price_of(one.model, one.memory_bytes)) is not None}
        rates = [earned_per_hour(priced[one.model]) for one in devices if one.model in priced]
        # Which of several cards worked is not kept: each counts as their mean.
        amount += worked.gpu_s / 3600 * sum(rates) / max(1, len(devices))
        basis += [
            f"{price.usd_per_hour:g} USD an hour of a {model} ({price.source}), less {FEE_SHARE:.0%} fee"
            for model, price in priced.items()
        ]
    return {"amount": round(amount, 4), "currency": currency, "basis": "; ".join(basis)} if basis else None


def an_hour(settings: EarnSettings, slots: int, devices: tuple[Device, ...]) -> dict[str, Any]:
    """The same of one hour of all that is lent, with 'unpriced': what of it has no price, in words."""
    found = worth(Worked(3600.0 * slots, 3600.0 * len(devices)), settings, devices)
    unpriced = []
    if not settings.cpu_per_hour:
        unpriced.append("processors have no market price; yours: fallow node limits earn.cpu_per_hour=0.02")
    models = {one.model for one in devices if price_of(one.model, one.memory_bytes) is None}
    if settings.currency != "USD":
        models = {one.model for one in devices}
    if models and not settings.gpu_per_hour:
        names = " and ".join(sorted(models))
        unpriced.append(f"no price is known for {names}; yours: fallow node limits earn.gpu_per_hour=0.2")
    empty = {"amount": 0.0, "currency": settings.currency, "basis": ""}
    return {**(found or empty), "unpriced": "; ".join(unpriced)}
