"""The work of each row, the same for every peer. Every workload checks the results that it gets, and says its values
after each repetition, so that one which is ended for its time has some."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from bench import work
from bench.bare import makespan_s
from bench.peers.base import WORKERS, Outcome, Peer

Say = Callable[..., None]
WARM_UP = 200
RESTART_LIMIT_S = 30.0


class WrongResult(Exception):
    """A peer returned something else than it should."""


def _check_noops(results: Iterable[Any], count: int) -> None:
    total = seen = 0
    for value in results:
        total += value
        seen += 1
    if seen != count or total != count * (count - 1) // 2:
        raise WrongResult(
            f"{seen} results that sum to {total} instead of {count} that sum to {count * (count - 1) // 2}"
        )


def _warm(peer: Peer) -> None:
    peer.start()
    _check_noops(peer.map(work.noop, range(WARM_UP)), WARM_UP)


def map_plain(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    rates = []
    for _ in range(parameters["repeat"]):
        start = time.perf_counter()
        _check_noops(peer.map(work.noop, range(count)), count)
        rates.append(count / (time.perf_counter() - start))
        say("values", tasks=count, tasks_per_s=round(statistics.median(rates)))


def map_tuned(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    rates = []
    for _ in range(parameters["repeat"]):
        start = time.perf_counter()
        _check_noops(peer.map_tuned(count), count)
        rates.append(count / (time.perf_counter() - start))
        say("values", tuned_tasks=count, tuned_per_s=round(statistics.median(rates)))


def memory(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    time.sleep(1.0)  # not for a state: what is measured is the memory of a pool at rest
    say("rest")
    time.sleep(0.3)
    start = time.perf_counter()
    _check_noops(peer.map(work.noop, range(count)), count)
    took = time.perf_counter() - start
    say("end")
    say("values", tasks=count, took_s=round(took, 2))


def call(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    _warm(peer)
    for index in range(50):
        peer.call(work.noop, index)
    times = []
    for index in range(parameters["calls"]):
        start = time.perf_counter()
        value = peer.call(work.noop, index)
        times.append(time.perf_counter() - start)
        if value != index:
            raise WrongResult(f"call {index} returned {value!r}")
    times.sort()
    say("values", p50_ms=round(times[len(times) // 2] * 1e3, 3), p99_ms=round(times[len(times) * 99 // 100] * 1e3, 3))


def submit(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    _check_noops(peer.submit_all(work.noop, range(WARM_UP)), WARM_UP)
    start = time.perf_counter()
    _check_noops(peer.submit_all(work.noop, range(count)), count)
    say("values", tasks=count, submits_per_s=round(count / (time.perf_counter() - start)))


def arrays(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    for _ in peer.map(work.shift, work.arrays(20)):
        pass
    rates = []
    for _ in range(parameters["repeat"]):
        start = time.perf_counter()
        seen = 0
        for index, array in enumerate(peer.map(work.shift, work.arrays(count))):
            if array[0] != index + 1 or array[-1] != index + 1:
                raise WrongResult(f"array {index} came back as {array[0]}")
            seen += 1
        if seen != count:
            raise WrongResult(f"{seen} arrays instead of {count}")
        rates.append(2 * count * work.ARRAY_BYTES / (time.perf_counter() - start))
        say("values", tasks=count, mb_per_s=round(statistics.median(rates) / 1e6))


def broadcast(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    import numpy

    _warm(peer)
    peer.broadcast(work.touch, numpy.ones(1 << 18, dtype=numpy.int64), 2 * WORKERS)
    size = parameters["bytes"]
    rates = []
    for attempt in range(parameters["repeat"]):
        # Other bytes each time, so that nothing is found from before; made before the clock starts.
        array = numpy.arange(attempt, attempt + size // 8, dtype=numpy.int64)
        expected = int(array[::512].sum())
        start = time.monotonic()
        first: dict[int, float] = {}
        for pid, done, total in peer.broadcast(work.touch, array, 2 * WORKERS):
            if total != expected:
                raise WrongResult(f"a worker read {total} instead of {expected}")
            first[pid] = min(first.get(pid, done), done)
        if len(first) >= WORKERS:
            rates.append(WORKERS * size / (sorted(first.values())[WORKERS - 1] - start))
            say("values", gb_per_s=round(statistics.median(rates) / 1e9, 3))
    if not rates:
        raise WrongResult("one worker did all of the tasks")


def skewed_lengths(count: int, total_s: float) -> list[float]:
    """Lognormal (sigma 1), scaled to the total, in random order; the same for everyone."""
    chance = random.Random(7)
    raw = [chance.lognormvariate(0.0, 1.0) for _ in range(count)]
    scale = total_s / sum(raw)
    return [length * scale for length in raw]


def skew(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    """Bare, peer, bare, ..., peer, bare: what the machine takes by itself changes from one minute to the next."""
    lengths = skewed_lengths(parameters["tasks"], parameters["total_s"])
    bound = max(sum(lengths) / WORKERS, max(lengths))
    bares = [makespan_s(lengths, WORKERS) / bound]
    _warm(peer)
    ratios = []
    for _ in range(parameters["repeat"]):
        start = time.perf_counter()
        done = list(peer.map(work.burn, lengths))
        ratios.append((time.perf_counter() - start) / bound)
        if done != lengths:
            raise WrongResult("the lengths came back in another order")
        bares.append(makespan_s(lengths, WORKERS) / bound)
        flat, bare = statistics.median(ratios), statistics.median(bares)
        say(
            "values",
            bound_s=round(bound, 2),
            makespan_ratio=round(flat, 4),
            ratios=[round(r, 4) for r in ratios],
            bare_ratio=round(bare, 4),
            bare_ratios=[round(r, 4) for r in bares],
            over_bare=round(flat / bare, 4),
        )


def poison(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = 1000
    _warm(peer)
    start = time.perf_counter()
    outcome = peer.settle(work.poison, range(count))
    took = time.perf_counter() - start
    say("values", results=len(set(outcome.values)), errors=len(outcome.errors), took_s=round(took, 2),
        message=_kinds(outcome))  # fmt: skip


def _kinds(outcome: Outcome) -> str:
    kinds: dict[str, int] = {}
    for error in outcome.errors:
        kinds[error] = kinds.get(error, 0) + 1
    return "; ".join(f"{count} x {text}" if count > 1 else text for text, count in list(kinds.items())[:2])


def _naps(peer: Peer, count: int) -> tuple[float, Outcome]:
    start = time.perf_counter()
    outcome = peer.settle(work.nap, range(count))
    return time.perf_counter() - start, outcome


def _completeness(outcome: Outcome, count: int) -> dict[str, Any]:
    indices = [index for index, _ in outcome.values]
    return {"results": len(set(indices)), "twice": len(indices) - len(set(indices)), "of": count}


def _naps_without(peer: Peer, count: int, victim: int, after_s: float) -> tuple[float, Outcome]:
    """The same, while a worker is killed after so many seconds."""
    timer = threading.Timer(after_s, os.kill, (victim, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    found = _naps(peer, count)
    timer.cancel()
    return found


def kill_worker(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    _warm(peer)
    undisturbed, first = _naps(peer, count)
    victims = {pid for _, pid in first.values} - {os.getpid()}
    if not victims:
        raise WrongResult(f"no worker did anything: {_kinds(first)}")
    took, outcome = _naps_without(peer, count, max(victims), undisturbed * 0.4)
    say("values", longer_s=round(took - undisturbed, 3), undisturbed_s=round(undisturbed, 3),
        message=_kinds(outcome), **_completeness(outcome, count))  # fmt: skip


def kill_worker_careful(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    """By the setting under which the peer does its best, compared with nothing: is it complete?"""
    count = parameters["tasks"]
    peer.start_careful()
    _check_noops(peer.map(work.noop, range(WARM_UP)), WARM_UP)
    _, first = _naps(peer, 10 * WORKERS)
    victim = max({pid for _, pid in first.values} - {os.getpid()})
    took, outcome = _naps_without(peer, count, victim, count * 0.01 / WORKERS * 0.4)
    say("values", **_careful(took, outcome, count))


def _careful(took_s: float, outcome: Outcome, count: int) -> dict[str, Any]:
    values = {"took_s": round(took_s, 2), "message": _kinds(outcome), **_completeness(outcome, count)}
    return {f"careful_{key}": value for key, value in values.items()}


def _naps_without_control(peer: Peer, count: int) -> tuple[float, Outcome]:
    _check_noops(peer.map(work.noop, range(WARM_UP)), WARM_UP)

    def kill() -> None:
        pid, again = peer.control_process()
        os.kill(pid, signal.SIGKILL)
        if again is not None:
            time.sleep(0.5)
            again()

    timer = threading.Timer(count * 0.01 / WORKERS * 0.4, kill)
    timer.daemon = True
    timer.start()
    took, outcome = _naps(peer, count)
    timer.cancel()
    timer.join(RESTART_LIMIT_S)
    return took, outcome


def control_careful(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    peer.start_careful()
    took, outcome = _naps_without_control(peer, count)
    say("values", **_careful(took, outcome, count))


def control(peer: Peer, parameters: dict[str, Any], say: Say) -> None:
    count = parameters["tasks"]
    peer.start_for_control()
    took, outcome = _naps_without_control(peer, count)
    say("values", took_s=round(took, 2), message=_kinds(outcome), **_completeness(outcome, count), serves=False)
    # Does it serve any more? By a function that no worker has seen yet: what they know they may do without control.
    start = time.perf_counter()
    for _ in range(2):  # what is on its way while a peer connects anew may be lost without more to come
        if len(peer.settle(work.burn, [0.0] * WARM_UP).values) == WARM_UP:
            say("values", serves=True, served_after_s=round(time.perf_counter() - start, 2))
            return


WORKLOADS: dict[str, Callable[[Peer, dict[str, Any], Say], None]] = {
    "map": map_plain,
    "map_tuned": map_tuned,
    "memory": memory,
    "call": call,
    "submit": submit,
    "arrays": arrays,
    "broadcast": broadcast,
    "skew": skew,
    "poison": poison,
    "kill_worker": kill_worker,
    "kill_worker_careful": kill_worker_careful,
    "control": control,
    "control_careful": control_careful,
}
