"""Keeps a few child processes running until it is told to end: no threads, no event loop.

One loop waits for signals, for children to become ready or to end, for the end of a lifeline, and for the moment
to start a child again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence

from fallow.cli.processes import Child

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 10.0
STEADY_S = 20.0
"""A child that lived this long starts with a clean record when it ends."""


class ServiceFailed(Exception):
    """A child ended by itself before it was ready for the first time: starting it again would not help."""


class Service:
    """One child that is to run. `start` makes the process; `grace_s` is how long it may take to end on SIGTERM."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Child],
        *,
        grace_s: float,
        needed: bool = True,
        may_leave: bool = False,
        last: bool = False,
    ) -> None:
        self.name = name
        self.start = start
        self.grace_s = grace_s
        self.needed = needed
        """Whether its end before it was ever ready is the end of everything."""
        self.may_leave = may_leave
        """Whether it stays away once it ended in order (exit code 0) by itself, having been told to leave."""
        self.last = last
        """Whether everything ends when it leaves."""
        self.child: Child | None = None
        self.failures = 0
        self.start_at_s = 0.0
        self.was_ready = False


def restart_delay_s(failures: int) -> float:
    """Seconds to wait before a child is started again that failed `failures` times in a row (1: the first time)."""
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 3 ** max(0, failures - 1)))


class Supervisor:
    """Runs services. `say` takes lines for people; `lifeline` is a descriptor whose end ends everything."""

    def __init__(self, say: Callable[[str], None], *, lifeline: int = -1, ignore_interrupt: bool = False) -> None:
        self.say = say
        self.services: list[Service] = []
        self.on_ready: Callable[[Service], None] = lambda service: None
        self.ending = False
        self.in_a_hurry = False
        self._lifeline = lifeline
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.private_fds: list[int] = [self._wake_read, self._wake_write]
        """What no child may keep open."""
        if lifeline >= 0:
            self.private_fds.append(lifeline)
        self._install_signals(ignore_interrupt)

    # ------------------------------------------------------------ signals

    def _install_signals(self, ignore_interrupt: bool) -> None:
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        ends: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGHUP)
        for number in ends:
            signal.signal(number, self._asked_to_end)
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_interrupt else self._asked_to_end)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _asked_to_end(self, number: int, frame: object) -> None:
        self.in_a_hurry = self.ending
        self.ending = True

    # ------------------------------------------------------------ children

    def add(self, service: Service) -> None:
        """Start a service and keep it running."""
        self.services.append(service)
        self._start(service)

    def _start(self, service: Service) -> None:
        service.start_at_s = 0.0
        try:
            service.child = service.start()
        except OSError as error:
            words = f"the {service.name} cannot be started: {error}"
            if not service.was_ready:
                raise ServiceFailed(f"{words}.") from None
            # As while the disk is full: whatever else runs goes on.
            service.failures += 1
            delay = restart_delay_s(service.failures)
            service.start_at_s = time.monotonic() + delay
            self.say(f"{words}; trying again in {delay:.1f} s.")

    def child_fds(self) -> list[int]:
        """Descriptors of this process that a new child must not keep."""
        ready = [service.child.ready_fd for service in self.services if service.child and service.child.ready_fd >= 0]
        return [*self.private_fds, *ready]

    def reap(self) -> None:
        """Notice children that ended. Raises ServiceFailed for one that never got ready and is needed."""
        now = time.monotonic()
        for service in self.services:
            child = service.child
            if child is None or not child.poll():
                continue
            child.close()
            service.child = None
            if self.ending:
                continue
            if service.needed and not service.was_ready and not os.WIFSIGNALED(child.exit_status or 0):
                words = child.last_words(lines=3)
                if words.startswith("fallow: "):  # it has said itself what is wrong
                    raise ServiceFailed(words.removeprefix("fallow: "))
                raise ServiceFailed(
                    f"the {service.name} {child.exit_words} while starting" + (f": {words}" if words else ".")
                )
            if service.may_leave and service.was_ready and child.exit_status == 0:
                service.start_at_s = float("inf")
                self.say(f"the {service.name} has left.")
                self.ending = self.ending or service.last
                continue
            service.failures = 1 if now - child.started_s > STEADY_S else service.failures + 1
            delay = restart_delay_s(service.failures)
            service.start_at_s = now + delay
            self.say(f"the {service.name} {child.exit_words}; it starts again (its log: {child.log}).")

    # ------------------------------------------------------------ the loop

    def run_once(self, timeout_s: float = 3600.0) -> None:
        """Wait for one thing to happen, or the time to pass, and deal with it."""
        now = time.monotonic()
        for service in self.services:
            if service.child is None and not self.ending:
                timeout_s = min(timeout_s, max(0.0, service.start_at_s - now))
        readies = {
            service.child.ready_fd: service
            for service in self.services
            if service.child is not None and service.child.ready_fd >= 0
        }
        watched = [self._wake_read, *readies]
        if self._lifeline >= 0:
            watched.append(self._lifeline)
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if self._wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._lifeline in readable and not os.read(self._lifeline, 4096):
            self.private_fds.remove(self._lifeline)
            os.close(self._lifeline)
            self._lifeline = -1
            self.ending = True
        for fd, service in readies.items():
            if fd in readable:
                self._heard(service, fd)
        self.reap()
        now = time.monotonic()
        for service in self.services:
            if service.child is None and not self.ending and now >= service.start_at_s:
                self._start(service)

    def _heard(self, service: Service, fd: int) -> None:
        said = os.read(fd, 1)
        assert service.child is not None
        service.child.close()
        if said:
            service.was_ready = True
            self.on_ready(service)

    def run(self) -> None:
        """Run until told to end. Raises ServiceFailed."""
        while not self.ending:
            self.run_once()

    # ------------------------------------------------------------ the end

    def end(self, order: Sequence[str]) -> None:
        """End the services by name, each before the next, kindly at first; a second signal hurries all of it."""
        self.ending = True
        ordered = sorted(self.services, key=lambda service: order.index(service.name) if service.name in order else 99)
        for service in ordered:
            if service.child is not None:
                self._end_child(service.child, service.grace_s)
                service.child = None

    def _end_child(self, child: Child, grace_s: float) -> None:
        child.close()
        deadline = time.monotonic() + grace_s
        if grace_s > 0:
            child.signal(signal.SIGTERM)
        while not child.poll() and not self.in_a_hurry:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # SIGCHLD writes to the wake pipe; the time limit covers one that came just before.
            select.select([self._wake_read], [], [], min(left, 0.05))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        child.signal(signal.SIGKILL)
        while not child.poll():
            time.sleep(0.002)

    def close(self) -> None:
        """Give the descriptors and the signals back."""
        signal.set_wakeup_fd(self._old_wakeup)
        for fd in (self._wake_read, self._wake_write, self._lifeline):
            if fd >= 0:
                os.close(fd)
