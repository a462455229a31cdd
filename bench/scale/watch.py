"""What a coordinator's event loop does, seen from inside: for `bench agents --timeline`.

Steps that take long, pauses of the garbage collector, how late a timer is, and when each pull came and its lease left,
all in seconds of the monotonic clock, which other processes of the machine share."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONG_S = 0.002
LOOK_S = 0.01


class LoopWatch:
    """`install` before the coordinator runs; `dump` from any thread."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float, float, float]] = []
        """(name, when it began, how long it took, CPU time of that) of those that took LONG_S."""
        self.pulls: list[tuple[str, int, float]] = []
        self.leases: list[tuple[str, int, float]] = []
        self.messages: Counter[str] = Counter()
        self._collecting = 0.0, 0.0
        self._looks_at = False

    def install(self) -> None:
        from fallow.coordinator.acknowledgements import Acknowledgements
        from fallow.coordinator.journal import Journal
        from fallow.coordinator.map_job import MapJob
        from fallow.coordinator.matcher import Matcher
        from fallow.coordinator.owned_job import OwnedJob
        from fallow.coordinator.service import Service
        from fallow.wire import connection
        from fallow.wire.direct_client import DirectClient

        self._time(Service, "turn")
        self._time(Service, "_tick_nodes")
        self._time(Matcher, "_run")
        self._time(Matcher, "tick")
        self._time(MapJob, "tick")
        self._time(OwnedJob, "check_nodes")
        self._time(OwnedJob, "info")
        self._time(Acknowledgements, "flush")
        self._time(DirectClient, "_take_messages")
        self._time_callbacks(Journal)
        self._note_pulls(OwnedJob)
        self._count(connection)
        gc.callbacks.append(self._collected)

        turn = Service.turn

        def turn_and_look(service: Any) -> None:
            if not self._looks_at:
                self._looks_at = True
                asyncio.get_running_loop().create_task(self._look())
            turn(service)

        Service.turn = turn_and_look  # type: ignore[method-assign, assignment]

    def dump(self, path: Path) -> None:
        content = {
            "steps": self.steps, "pulls": self.pulls, "leases": self.leases, "messages": dict(self.messages),
        }  # fmt: skip
        path.with_suffix(".new").write_text(json.dumps(content))
        path.with_suffix(".new").rename(path)

    # ------------------------------------------------------------ what is noted

    def _note(self, name: str, began: float, cpu_began: float) -> None:
        took = time.monotonic() - began
        if took >= LONG_S:
            self.steps.append((name, began, took, time.thread_time() - cpu_began if cpu_began else 0.0))

    def _time(self, kind: type, name: str) -> None:
        plain: Callable[..., Any] = getattr(kind, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began, cpu_began = time.monotonic(), time.thread_time()
            try:
                return plain(*arguments, **options)
            finally:
                self._note(f"{kind.__name__}.{name}", began, cpu_began)

        setattr(kind, name, timed)

    def _time_callbacks(self, kind: Any) -> None:
        plain = kind._call

        def call(journal: Any, callback: Callable[[], object]) -> None:
            def timed() -> None:
                began, cpu_began = time.monotonic(), time.thread_time()
                callback()
                self._note("Journal callback", began, cpu_began)

            plain(journal, timed)

        kind._call = call

    def _note_pulls(self, kind: Any) -> None:
        hand_in, pull, send = kind.on_hand_in, kind.on_pull, kind._send_lease

        def on_hand_in(job: Any, message: Any) -> None:
            if message.pull is not None:
                self.pulls.append((message.node_id, message.pull.seq, time.monotonic()))
            hand_in(job, message)

        def on_pull(job: Any, message: Any) -> None:
            self.pulls.append((message.node_id, message.seq, time.monotonic()))
            pull(job, message)

        def send_lease(job: Any, grant: Any, pages: Any) -> None:
            send(job, grant, pages)
            self.leases.append((grant.slot[0], grant.pull_seq, time.monotonic()))

        kind.on_hand_in, kind.on_pull, kind._send_lease = on_hand_in, on_pull, send_lease

    def _count(self, connection: Any) -> None:
        decode, encode = connection.decode, connection.encode

        def counted_decode(data: bytes) -> Any:
            message = decode(data)
            self.messages[f"in {type(message).__name__}"] += 1
            return message

        def counted_encode(message: Any) -> bytes:
            self.messages[f"out {type(message).__name__}"] += 1
            return bytes(encode(message))

        connection.decode, connection.encode = counted_decode, counted_encode

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.monotonic(), time.thread_time()
        else:
            self._note(f"gc of generation {info['generation']}", *self._collecting)

    async def _look(self) -> None:
        """How late the loop comes to what is due."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._note("late", due, 0.0)
