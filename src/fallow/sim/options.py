"""What a run is made of. The same options give the same run, to the last event."""

from __future__ import annotations

from dataclasses import dataclass

from fallow.model.errors import SettingError


@dataclass(frozen=True, slots=True)
class Options:
    """All times are virtual. Rates of faults are per hour of the whole pool."""

    nodes: int = 1000
    slots: int = 1
    """Slots a node lends."""
    hours: float = 2.0
    """Work arrives, nodes churn and faults strike for so long; then all heals, and what is left must end."""
    jobs: int = 20
    seed: int = 1
    load: float = 0.9
    """Work offered, as a share of what the nodes could do."""
    task_s: float = 600.0
    """Mean length of a task on a node of mean speed; jobs differ from it up to threefold."""
    coordinators: int = 3
    trace: str = "Microsoft99"
    churn: float = 1.0
    """How many times as often as in the trace nodes come and go."""
    silent_share: float = 0.3
    """Of the departures, those without a word (power lost)."""
    latency_s: float = 0.02
    loss: float = 0.001
    duplicate: float = 0.001
    fault_rate: float = 12.0
    """Crashes, stops and cuts of coordinators, and cuts and storms of the network, an hour. 0: none."""
    poison: int = 5000
    """One task in so many kills its worker whenever it runs. 0: none."""
    drain_hours: float = 48.0
    """After healing, the jobs that have not ended by then are taken for stuck."""

    def check(self) -> None:
        """Raise SettingError for what cannot be run."""
        for name in ("nodes", "slots", "jobs", "coordinators"):
            if getattr(self, name) < 1:
                raise SettingError(f"--{name} must be at least 1, and is {getattr(self, name)}")
        for name in ("hours", "load", "task_s", "churn", "drain_hours"):
            if not getattr(self, name) > 0:
                raise SettingError(f"--{name.replace('_', '-')} must be more than 0, and is {getattr(self, name)}")
        for name in ("loss", "duplicate", "silent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"--{name.replace('_', '-')} is a share between 0 and 1, not {getattr(self, name)}")
