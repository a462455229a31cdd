"""What every peer can be asked to do. A peer imports its own packages inside its methods alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

WORKERS = 2
LOST_AFTER_S = 15.0
"""So long is waited for one result that a peer may have lost, with no other result in between."""


@dataclass
class Outcome:
    """What came of tasks of which some may fail: values by their index, and the errors in words."""

    values: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def collect(self, take: Callable[[], Any]) -> None:
        """Call and keep the value, or the error in one line."""
        try:
            self.values.append(take())
        except Exception as error:
            self.errors.append(one_line(error))


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


class Peer:
    """One system with two workers. `start` warms nothing up; the workloads do."""

    name: ClassVar[str]
    title: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]] = ()
    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    """By workload, the parameters that are smaller for this peer, where the full ones would take minutes. Rates are
    what is compared, and the number of tasks stands beside them."""
    tuned: ClassVar[str] = ""
    """The best-known setting for many tiny tasks, in words; empty: there is none beside the default."""
    careful: ClassVar[str] = ""
    """The setting under which work survives deaths that it does not by default, in words; empty: there is none."""
    not_applicable: ClassVar[dict[str, str]] = {}
    """Rows that say nothing about this peer, with the reason."""

    def start(self) -> None:
        raise NotImplementedError

    def start_careful(self) -> None:
        """Like start, with the setting of `careful`."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """All results, by the default setting, in order, streamed where the peer can."""
        raise NotImplementedError

    def map_tuned(self, count: int) -> Iterable[Any]:
        """work.noop over range(count), by the best-known setting."""
        raise NotImplementedError

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """One call and its result."""
        raise NotImplementedError

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """One submission per item, then all results."""
        raise NotImplementedError

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        """`count` tasks on one and the same array, sent in the way that the peer means for that."""
        raise NotImplementedError

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        """Each task by itself: one that fails must not hide the others, where the peer can do that."""
        raise NotImplementedError

    def control_process(self) -> tuple[int, Callable[[], None] | None]:
        """(pid of the process that schedules, how to start it again; None where it comes back by itself)."""
        raise NotImplementedError

    def start_for_control(self) -> None:
        """Like start, with a control process of its own that can be killed."""
        self.start()

    @classmethod
    def cold_script(cls, variant: str) -> str:
        """A script as a newcomer writes it, which prints 'first' when it has the first result."""
        raise NotImplementedError


def settle_each(handles: Iterable[Any], take: Callable[[Any], Any], done: Callable[[Any], bool]) -> Outcome:
    """`take` of every handle, which raises a TimeoutError for a task that was lost and is waited for in vain. One is
    enough to see that: what is not done by then is counted as lost without another wait."""
    outcome = Outcome()
    lost = False
    for handle in handles:
        if lost and not done(handle):
            outcome.errors.append("lost")
            continue
        outcome.collect(lambda handle=handle: take(handle))  # type: ignore[misc]
        lost = lost or bool(outcome.errors and outcome.errors[-1].startswith("TimeoutError"))
    return outcome


def chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(count, start + size))
