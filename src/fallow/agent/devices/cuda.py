"""CUDA's driver interface, through ctypes: no toolkit is needed, only the driver. For programs of their own, never for
the agent itself: a process that has used CUDA keeps memory of the device until it ends."""

from __future__ import annotations

import ctypes
import sys

Pointer = ctypes.c_uint64


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

    def allocate(self, size: int) -> Pointer | None:
        """Memory of the device; None where there is not so much in one piece."""
        pointer = ctypes.c_uint64()
        return pointer if self.status("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size)) == 0 else None

    def zero(self, pointer: Pointer, size: int) -> None:
        self.call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(0), ctypes.c_size_t(size))

    def fill(self, pointer: Pointer, value: float, count: int) -> None:
        """`count` 32-bit floats."""
        bits = ctypes.c_uint.from_buffer_copy(ctypes.c_float(value))
        self.call("cuMemsetD32_v2", pointer, bits, ctypes.c_size_t(count))

    def read_float(self, pointer: Pointer) -> float:
        found = ctypes.c_float()
        self.call("cuMemcpyDtoH_v2", ctypes.byref(found), pointer, ctypes.c_size_t(4))
        return found.value

    def synchronise(self) -> None:
        self.call("cuCtxSynchronize")

    def free(self, pointer: Pointer) -> None:
        self.call("cuMemFree_v2", pointer)
