"""The bridge from a task to the agent, and objects of the pool."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np

from fallow.wire.page import encode_inputs
from fallow.worker import nested
from tests.worker.harness import Bench


def test_outside_a_worker_there_is_no_bridge() -> None:
    assert nested.current() is None


async def test_a_task_asks_the_agent(bench: Bench) -> None:
    bench.recorder.answer = lambda kind, body: f"{kind}:{body.decode()}".encode()

    def work(x: int) -> list[bytes]:
        bridge = nested.current()
        assert bridge is not None
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(bridge.ask("request", f"{x}-{n}".encode())))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [bridge.ask("request", str(x).encode()), *sorted(found)]

    for _ in range(3):  # orders reach the worker after the bridge has taken over the socket, too
        found = await bench.map(work, range(2))
        assert found[1] == [b"request:1", *(f"request:1-{n}".encode() for n in range(4))]


async def test_messages_for_a_nested_client_arrive(bench: Bench) -> None:
    bench.recorder.answer = lambda kind, body: bench.worker.tell(body + b" heard") or b""  # type: ignore[func-returns-value]

    def work(x: int) -> bytes:
        import queue

        bridge = nested.current()
        assert bridge is not None
        heard: queue.Queue[bytes] = queue.Queue()
        bridge.on_tell(heard.put)
        bridge.ask("publish", b"hello")
        return heard.get(timeout=60)

    assert await bench.map(work, range(1)) == [b"hello heard"]


async def test_a_forked_child_has_no_bridge(bench: Bench) -> None:
    def work(x: int) -> bool:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.apply(nested.current) is None

    assert await bench.map(work, range(1)) == [True]


async def test_objects_are_mapped_once_per_worker(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "blob"
    array = np.arange(500_000)
    path.write_bytes(b"".join(encode_inputs([array])))
    size = path.stat().st_size
    bench.recorder.answer = lambda kind, body: str(path).encode()

    def work(x: int) -> tuple[int, bool, int]:
        from fallow.worker.objects import get_object

        found = get_object("d" * 64, size)
        return int(found.sum()), found.flags.writeable, id(found)

    first, second = await bench.map(work, range(2))
    assert isinstance(first, tuple)
    assert first == second
    assert first[:2] == (int(array.sum()), False)
    assert [(kind, msgspec.msgpack.decode(body)) for kind, body in bench.recorder.asks] == [("blob", ["d" * 64, size])]


async def test_an_object_that_cannot_be_fetched(bench: Bench) -> None:
    def work(x: int) -> str:
        from fallow.worker.objects import get_object

        try:
            get_object("e" * 64, 10)
        except OSError as error:
            return str(error)
        return ""

    (words,) = await bench.map(work, range(1))
    assert words == f"the node could not fetch the blob {'e' * 12} (10 bytes) from the pool"
