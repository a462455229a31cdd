"""Overwrites all free memory of one GPU with zeros, so that its next tenant finds nothing of the last one's.

`python -m fallow.agent.devices.wipe` wipes the one device that CUDA_VISIBLE_DEVICES shows, through the driver alone,
and prints how much. It is a program of its own, since a process that has used CUDA keeps memory until it ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import sys

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
        out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
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


class CudaError(Exception):
    """The driver refused a call."""


class Cuda:
    """The driver's interface, for the first visible device. Raises CudaError."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError as error:
            raise CudaError(f"the CUDA driver is not found ({error})") from error
        self._device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.call("cuCtxSetCurrent", self._context)

    def call(self, name: str, *arguments: object) -> None:
        status = self.status(name, *arguments)
        if status:
            raise CudaError(f"{name} answered {status}")

    def status(self, name: str, *arguments: object) -> int:
        return int(getattr(self._library, name)(*arguments))

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> ctypes.c_uint64 | None:
        """Memory of the device; None where there is not so much in one piece."""
        pointer = ctypes.c_uint64()
        return pointer if self.status("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size)) == 0 else None

    def zero(self, pointer: ctypes.c_uint64, size: int) -> None:
        self.call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(0), ctypes.c_size_t(size))

    def synchronise(self) -> None:
        self.call("cuCtxSynchronize")

    def free(self, pointer: ctypes.c_uint64) -> None:
        self.call("cuMemFree_v2", pointer)


def wipe_visible() -> tuple[int, int]:
    """(bytes overwritten, bytes that were free): takes all free memory in pieces as large as can be had."""
    cuda = Cuda()
    free, _ = cuda.memory()
    held: list[ctypes.c_uint64] = []
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
