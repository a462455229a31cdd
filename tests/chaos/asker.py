"""An operator who asks the pool all the time: each question is a request, to be answered within its deadline.

    python -m tests.chaos.asker OUT STOP ADDRESS

The same questions as the program `fallow` asks, over one connection that lasts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from fallow.cli.client import PoolClient
from fallow.wire.address import parse_address
from fallow.wire.connection import PING_OFTEN_S, connect

EVERY_S = 0.1
PATIENCE_S = 60.0


async def ask(out: Path, stop: Path, address: str) -> None:
    target = parse_address(address)
    client = PoolClient(await connect(target, "asker", timeout_s=60.0, ping_every_s=PING_OFTEN_S), target)
    questions = {
        "pool": client.pool,
        "nodes": client.nodes,
        "jobs": lambda: client.jobs(20, True),
        "coordinators": client.coordinators,
    }
    with out.open("a", buffering=1) as file:
        while not stop.exists():
            for what, question in questions.items():
                began, start, wrong = time.time(), time.monotonic(), ""
                try:
                    await asyncio.wait_for(question(), PATIENCE_S)  # type: ignore[operator]
                except Exception as error:
                    wrong = f"{type(error).__name__}: {error}"
                seconds = time.monotonic() - start
                line = {"what": f"ask:{what}", "began": began, "seconds": seconds, "wrong": wrong, "job": ""}
                file.write(json.dumps(line) + "\n")
                await asyncio.sleep(EVERY_S)
    await client.connection.close()


if __name__ == "__main__":
    asyncio.run(ask(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
