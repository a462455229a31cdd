"""What goes wrong, drawn from the seed: first faults, then healing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fallow.sim.coordinator import SESSION_S, Coordinator

if TYPE_CHECKING:
    from fallow.sim.world import World

ZONES = 50
"""Nodes lie in so many zones; a cut takes some of them off."""
LATE_CLOCK_S = 1.0
"""By so much at most a coordinator notices too late that its session is over: its epoch alone has to stop it."""


class Faults:
    def __init__(self, world: World, rate_per_hour: float) -> None:
        self._world = world
        self._rate = rate_per_hour
        self._is_healed = False
        self.strikes_at = math.inf
        """When the next fault comes."""
        self.counts: dict[str, int] = {}

    def start(self) -> None:
        self._next()

    def _next(self) -> None:
        self.strikes_at = math.inf
        if self._rate > 0 and not self._is_healed:
            self.strikes_at = self._world.clock.now + self._world.chance.expovariate(self._rate / 3600)
            self._world.clock.at(self.strikes_at, self._strike)

    def _strike(self) -> None:
        if self._is_healed:
            return
        chance = self._world.chance
        coordinator = chance.choice(self._world.coordinators)
        what = chance.choice(("crash", "stop", "cut_store", "cut_zones", "storm"))
        long_s = chance.choice((1.0, 2.5, 5.0, 20.0, 60.0)) * (0.5 + chance.random())
        self.counts[what] = self.counts.get(what, 0) + 1
        self._world.clock.note("fault", what, coordinator.number, round(long_s, 6))
        if what == "crash":
            self._crash(coordinator, long_s)
        elif what == "stop":
            self._stop(coordinator, long_s)
        elif what == "cut_store":
            self._cut_store(coordinator, long_s)
        elif what == "cut_zones":
            self._cut_zones({chance.randrange(ZONES) for _ in range(chance.randrange(1, 6))}, long_s)
        else:
            self._storm(long_s)
        self._next()

    # ------------------------------------------------------------ coordinators

    def _crash(self, coordinator: Coordinator, long_s: float) -> None:
        if not coordinator.is_up:
            return
        coordinator.is_up = False
        coordinator.is_stopped = False
        self._session_ends(coordinator)
        buffer, coordinator.buffer = coordinator.buffer, []
        for owned, kind, args in buffer:
            self._world.undelivered(owned, kind, args)
        for owned in list(coordinator.owned.values()):
            owned.die()
        self._flush(coordinator)
        self._world.clock.after(long_s, self._restart, coordinator)

    def _restart(self, coordinator: Coordinator) -> None:
        if not coordinator.is_up:
            coordinator.is_up = True
            self._session_begins(coordinator)

    def _stop(self, coordinator: Coordinator, long_s: float) -> None:
        if coordinator.is_up and not coordinator.is_stopped:
            coordinator.is_stopped = True
            self._session_ends(coordinator)
            self._world.clock.after(long_s, self._go_on, coordinator)

    def _go_on(self, coordinator: Coordinator) -> None:
        if not coordinator.is_up or not coordinator.is_stopped:
            return
        coordinator.is_stopped = False
        is_over = self._world.clock.now >= coordinator.session_ends
        notices_late = is_over and self._world.chance.random() < 0.5
        if is_over and not notices_late:
            self._forget_jobs(coordinator)
        buffer, coordinator.buffer = coordinator.buffer, []
        for owned, kind, args in buffer:
            self._world.deliver(owned, kind, args)
        if notices_late:
            self._world.clock.after(LATE_CLOCK_S * self._world.chance.random(), self._notice, coordinator)
        elif not coordinator.is_cut:
            self._session_begins(coordinator)
        self._flush(coordinator)

    def _notice(self, coordinator: Coordinator) -> None:
        if coordinator.is_up and not coordinator.is_stopped and self._world.clock.now >= coordinator.session_ends:
            self._forget_jobs(coordinator)
            if not coordinator.is_cut:
                self._session_begins(coordinator)

    def _cut_store(self, coordinator: Coordinator, long_s: float) -> None:
        if coordinator.is_up and not coordinator.is_cut:
            coordinator.is_cut = True
            self._session_ends(coordinator)
            late_s = LATE_CLOCK_S * self._world.chance.random()
            self._world.clock.after(SESSION_S + late_s, self._notice, coordinator)
            self._world.clock.after(long_s, self._join_store, coordinator)

    def _join_store(self, coordinator: Coordinator) -> None:
        coordinator.is_cut = False
        if not coordinator.is_up or coordinator.is_stopped:
            return
        if self._world.clock.now >= coordinator.session_ends:
            self._forget_jobs(coordinator)
        self._session_begins(coordinator)
        self._flush(coordinator)

    def _forget_jobs(self, coordinator: Coordinator) -> None:
        for owned in list(coordinator.owned.values()):
            owned.die()

    def _flush(self, coordinator: Coordinator) -> None:
        deferred, coordinator.deferred = coordinator.deferred, []
        for what, args in deferred:
            what(*args)

    def _session_ends(self, coordinator: Coordinator) -> None:
        if coordinator.session_ends == float("inf"):
            coordinator.session += 1
            coordinator.session_ends = self._world.clock.now + SESSION_S
            self._world.clock.after(SESSION_S, self._world.session_over, coordinator, coordinator.session)

    def _session_begins(self, coordinator: Coordinator) -> None:
        coordinator.session += 1
        coordinator.session_ends = float("inf")
        self._world.coordinator_back(coordinator)

    # ------------------------------------------------------------ the network

    def _cut_zones(self, zones: set[int], long_s: float) -> None:
        fresh = zones - self._world.network.cut
        self._world.network.cut |= fresh
        for node in self._world.nodes:
            if node.zone in fresh and node.is_up:
                self._world.agents.last_beat(node)
                self._world.fall_silent(node)
        self._world.clock.after(long_s, self._join_zones, fresh)

    def _join_zones(self, zones: set[int]) -> None:
        joined = zones & self._world.network.cut
        self._world.network.cut -= joined
        for node in self._world.nodes:
            if node.zone in joined and node.is_up:
                self._world.hello(node)

    def _storm(self, long_s: float) -> None:
        network = self._world.network
        network.loss = self._world.chance.choice((0.05, 0.2, 0.5))
        network.duplicate = 0.1
        self._world.clock.after(long_s, self._calm)

    def _calm(self) -> None:
        options = self._world.options
        if not self._is_healed:
            self._world.network.loss = options.loss
            self._world.network.duplicate = options.duplicate

    # ------------------------------------------------------------ the end of it

    def heal(self) -> None:
        """Everything works again, and goes on working."""
        self._is_healed = True
        self.strikes_at = math.inf
        self._world.network.loss = self._world.network.duplicate = 0.0
        self._join_zones(set(self._world.network.cut))
        for coordinator in self._world.coordinators:
            if coordinator.is_cut:
                self._join_store(coordinator)
            if not coordinator.is_up:
                self._restart(coordinator)
            if coordinator.is_stopped:
                self._go_on(coordinator)
