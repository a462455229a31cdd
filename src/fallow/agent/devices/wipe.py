"""Overwrites all free memory of one GPU with zeros, so that its next tenant finds nothing of the last one's.

`python -m fallow.agent.devices.wipe` wipes the one device that CUDA_VISIBLE_DEVICES shows, through the driver alone,
and prints how much. It is a program of its own, since a process that has used CUDA keeps memory until it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

from fallow.agent.devices.cuda import Cuda, CudaError, Pointer
from fallow.core.gpu_memory import not_wiped

TIMEOUT_S = 60.0
LEAST_CHUNK = 2 << 20
"""The driver's own unit: smaller pieces cannot be had where this one cannot."""


async def wipe(uuid: str) -> str:
    """Overwrite the free memory of this device. '' if it was; else why not, in words."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fallow.agent.devices.wipe",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        return f"the program that overwrites its memory cannot be started: {error}"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        return f"its memory was not overwritten within {TIMEOUT_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return read_outcome(process.returncode, out)


def read_outcome(status: int | None, out: bytes) -> str:
    """'' if the program says that it overwrote what there is; else why not."""
    try:
        answer = json.loads(out)
        if "error" in answer:
            return f"its memory could not be overwritten: {answer['error']}"
        return not_wiped(int(answer["wiped"]), int(answer["free"]))
    except (ValueError, KeyError, TypeError):
        return f"the program that overwrites its memory ended with status {status}"


def wipe_visible() -> tuple[int, int]:
    """(bytes overwritten, bytes that were free): takes all free memory in pieces as large as can be had."""
    cuda = Cuda()
    free, _ = cuda.memory()
    held: list[Pointer] = []
    wiped = 0
    chunk = max(LEAST_CHUNK, free // LEAST_CHUNK * LEAST_CHUNK)
    while chunk >= LEAST_CHUNK:
        pointer = cuda.allocate(chunk)
        if pointer is None:
            chunk = chunk // 2 // LEAST_CHUNK * LEAST_CHUNK
            continue
        held.append(pointer)
        cuda.zero(pointer, chunk)
        wiped += chunk
    cuda.synchronise()
    for pointer in held:
        cuda.free(pointer)
    return wiped, free


def main() -> int:
    try:
        wiped, free = wipe_visible()
    except (CudaError, AttributeError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({"wiped": wiped, "free": free}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
