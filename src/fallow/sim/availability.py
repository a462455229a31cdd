"""How long machines stay and stay away: Weibull fits of real traces (see availability.csv for their source)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from random import Random

from fallow.model.errors import SettingError


@dataclass(frozen=True, slots=True)
class Availability:
    """Weibull distributions of up and down times; scales in seconds."""

    name: str
    up_shape: float
    up_scale_s: float
    down_shape: float
    down_scale_s: float
    share: float
    """Of the time, that a machine is up."""

    def up_s(self, chance: Random) -> float:
        return chance.weibullvariate(self.up_scale_s, self.up_shape)

    def down_s(self, chance: Random) -> float:
        return chance.weibullvariate(self.down_scale_s, self.down_shape)

    def faster(self, factor: float) -> Availability:
        """The same share of time, with `factor` times as many comings and goings."""
        return Availability(
            self.name,
            self.up_shape,
            self.up_scale_s / factor,
            self.down_shape,
            self.down_scale_s / factor,
            self.share,
        )


def load_availability(name: str) -> Availability:
    """The fit of one of the traces, such as 'Microsoft99' (office PCs) or 'Skype06'. Raises SettingError."""
    text = (files("fallow.sim") / "availability.csv").read_text()
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    for row in rows:
        if row["dataset"] == name and row["distribution"] == "Weibull":
            up, down = float(row["up_mean_h"]), float(row["down_mean_h"])
            return Availability(
                name,
                float(row["up_p1"]),
                float(row["up_p2"]) * 3600,
                float(row["down_p1"]),
                float(row["down_p2"]) * 3600,
                up / (up + down),
            )
    known = ", ".join(sorted({row["dataset"] for row in rows}))
    raise SettingError(f"no trace is called {name!r}; there are {known}")
