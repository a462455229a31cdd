"""NVIDIA's management library: what the devices are and what runs on them. The one loader for the whole agent.

No driver: no devices. A driver that is there but broken: `words` says what is wrong, and there are no devices either.
Readings that a driver does not give are None; nothing here raises for lack of one. Calls take about a millisecond and
may be made from any thread; a driver that hangs is waited for once (`patience`), and then gives none.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from msgspec import Struct

from fallow.agent.devices.patience import Hangs, Patience
from fallow.model.node import Device

Answer = TypeVar("Answer")

START_WAIT_S = 20.0
"""A driver that nothing uses wakes each device first: seconds for each."""
CALL_WAIT_S = 2.0
SAMPLES_S = 2.0
"""How far back a process' use of a device is looked at: the driver samples some six times a second."""


HANGS = "the NVIDIA driver hangs: see that `nvidia-smi` answers; mostly only a restart of the machine helps"


class Reading(Struct, frozen=True):
    """A device as it is now. None: the driver does not tell."""

    uuid: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilisation: float | None = None
    """Share of the last moments in which something ran, 0 to 1."""
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None


class GpuProcess(Struct, frozen=True):
    """A process with a context on a device."""

    pid: int
    memory_bytes: int | None
    share: float | None = None
    """Of the device's time of late, 0 to 1."""


class Nvml:
    """Open until `close`. `library`: path of the shared library, where it is not the system's."""

    def __init__(self, library: str = "") -> None:
        self._words = ""
        self._patience = Patience()
        self._pynvml: Any = None
        self._handles: dict[str, Any] = {}
        loaded = _load(library)
        if loaded is None:
            if os.path.exists("/proc/driver/nvidia/version"):
                self._words = (
                    "an NVIDIA driver is loaded, but its library libnvidia-ml.so.1 is not found; install the driver's"
                    " user part of the same version (Debian: libnvidia-ml1), or expose it to this container"
                )
            return
        try:
            import pynvml
        except ImportError:
            self._words = "the package nvidia-ml-py is missing; `pip install nvidia-ml-py` lets GPUs be found"
            return
        try:
            # The package would look for the library by itself; this way it takes the very one that was found.
            with pynvml.libLoadLock:
                pynvml.nvmlLib = loaded
                pynvml._nvmlGetFunctionPointer_cache.clear()
            self._patience.call(START_WAIT_S, pynvml.nvmlInit)
            self._pynvml = pynvml
            self.driver = str(self._ask(pynvml.nvmlSystemGetDriverVersion) or "")
            self._patience.call(START_WAIT_S, self._find_handles)
        except (pynvml.NVMLError, AttributeError, OSError) as error:
            self._words = f"the NVIDIA driver does not answer: {_words(error)}{_remedy(error)}"
        except Hangs:
            self._words = HANGS
            self._pynvml, self._handles = None, {}

    driver = ""
    """Version of the driver."""

    @property
    def words(self) -> str:
        """What is wrong with the driver; '' where all is well or no driver is there."""
        return HANGS if self._patience.hangs else self._words

    @property
    def works(self) -> bool:
        return self._pynvml is not None

    def close(self) -> None:
        if self._pynvml is not None:
            self._ask(self._pynvml.nvmlShutdown)
        self._pynvml = None
        self._handles = {}

    def _find_handles(self) -> None:
        """In the driver's own thread."""
        nvml = self._pynvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except (nvml.NVMLError, AttributeError):
            self._words = "the NVIDIA driver does not say how many devices there are"
            return
        for at in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(at)
                self._handles[nvml.nvmlDeviceGetUUID(handle)] = handle
            except (nvml.NVMLError, AttributeError, UnicodeDecodeError) as error:
                # One that fell off the bus must not hide the others.
                self._words = f"GPU {at} does not answer: {_words(error)}"

    def _ask(self, call: Callable[..., Answer], *arguments: Any) -> Answer | None:
        """The driver's answer; None where it gives none."""
        nvml = self._pynvml
        if nvml is None:
            return None
        try:
            return self._patience.call(CALL_WAIT_S, call, *arguments)
        except (nvml.NVMLError, AttributeError, UnicodeDecodeError):
            return None
        except Hangs:
            return None

    # ------------------------------------------------------------ what there is

    def devices(self) -> tuple[Device, ...]:
        """All devices that answer, in the driver's order."""
        found = []
        for uuid, handle in self._handles.items():
            nvml = self._pynvml
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
            found.append(
                Device(
                    kind="gpu",
                    model=str(self._ask(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"),
                    memory_bytes=int(memory.total) if memory is not None else 0,
                    uuid=uuid,
                    vendor="nvidia",
                    driver=self.driver,
                )
            )
        return tuple(found)

    def minor(self, uuid: str) -> int | None:
        """N of its device node /dev/nvidiaN."""
        handle = self._handles.get(uuid)
        return None if handle is None else self._ask(self._pynvml.nvmlDeviceGetMinorNumber, handle)

    # ------------------------------------------------------------ what it does

    def reading(self, uuid: str) -> Reading:
        """The device now; all None where it is not one of ours."""
        handle = self._handles.get(uuid)
        if handle is None:
            return Reading(uuid)
        nvml = self._pynvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        use = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(nvml.nvmlDeviceGetPowerManagementLimit, handle)
        heat = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return Reading(
            uuid=uuid,
            memory_total_bytes=None if memory is None else int(memory.total),
            memory_free_bytes=None if memory is None else int(memory.free),
            utilisation=None if use is None else use.gpu / 100,
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=None if heat is None else float(heat),
        )

    def readings(self) -> dict[str, Reading]:
        return {uuid: self.reading(uuid) for uuid in self._handles}

    def processes(self, uuid: str) -> tuple[GpuProcess, ...] | None:
        """Who has a context on the device, graphics included; None where the driver does not tell."""
        handle = self._handles.get(uuid)
        if handle is None:
            return None
        nvml = self._pynvml
        computing = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        drawing = self._ask(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        if computing is None and drawing is None:
            return None
        memory: dict[int, int | None] = {}
        for process in (*(computing or ()), *(drawing or ())):
            # A process that computes and draws is listed in both, with the same memory.
            used = process.usedGpuMemory
            before = memory.get(process.pid)
            memory[process.pid] = before if used is None else max(int(used), before or 0)
        shares = self._shares(handle)
        return tuple(
            GpuProcess(pid, used, None if shares is None else shares.get(pid, 0.0)) for pid, used in memory.items()
        )

    def _shares(self, handle: Any) -> dict[int, float] | None:
        """Share of the device's time of late by process."""
        nvml = self._pynvml
        since_us = int((time.time() - SAMPLES_S) * 1e6)
        try:
            samples = self._patience.call(CALL_WAIT_S, nvml.nvmlDeviceGetProcessUtilization, handle, since_us)
        except nvml.NVMLError as error:
            # The first two say that nothing ran since then.
            return {} if error.value in (nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_SUCCESS) else None
        except (AttributeError, Hangs):
            return None
        shares: dict[int, tuple[int, float]] = {}
        for sample in samples:
            if sample.timeStamp >= shares.get(sample.pid, (0, 0.0))[0]:
                shares[sample.pid] = (sample.timeStamp, min(1.0, sample.smUtil / 100))
        return {pid: share for pid, (_, share) in shares.items()}

    def gpu_use(self, exclude_pids: Collection[int]) -> dict[str, tuple[float | None, int | None]]:
        """What other programs take of each device: (share of its time, bytes of memory); None: the driver does not
        tell, so it may be anything. exclude_pids: our own processes, as the host numbers them."""
        return {uuid: self._foreign(uuid, frozenset(exclude_pids)) for uuid in self._handles}

    def _foreign(self, uuid: str, own: frozenset[int]) -> tuple[float | None, int | None]:
        found = self.processes(uuid)
        if found is None:
            return None, None
        others = [process for process in found if process.pid not in own]
        if not others:
            return 0.0, 0
        sizes = [process.memory_bytes for process in others]
        memory = None if any(size is None for size in sizes) else sum(size or 0 for size in sizes)
        parts = [process.share for process in others]
        if not any(part is None for part in parts):
            return min(1.0, sum(part or 0.0 for part in parts)), memory
        # Without figures by process, all of the device's use is theirs if none of ours is there.
        return (self.reading(uuid).utilisation if len(others) == len(found) else None), memory

    def set_power_limit(self, uuid: str, watts: float) -> str:
        """Have the driver hold the device to so many watts. '' if it does; else why not (it takes root, mostly)."""
        handle = self._handles.get(uuid)
        if handle is None:
            return "no such device"
        nvml = self._pynvml

        def limit() -> None:
            least, most = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            nvml.nvmlDeviceSetPowerManagementLimit(handle, int(min(most, max(least, watts * 1000))))

        try:
            self._patience.call(CALL_WAIT_S, limit)
        except (nvml.NVMLError, AttributeError) as error:
            return _words(error)
        except Hangs:
            return HANGS
        return ""


def _words(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _remedy(error: BaseException) -> str:
    name = type(error).__name__
    if name == "NVMLError_LibRmVersionMismatch":
        return " (the driver was updated while it ran: restart the machine)"
    if name in ("NVMLError_DriverNotLoaded", "NVMLError_NoPermission"):
        return " (see that `nvidia-smi` works for this user)"
    return ""


def _load(library: str) -> ctypes.CDLL | None:
    names = [library] if library else ["nvml.dll"] if sys.platform == "win32" else ["libnvidia-ml.so.1"]
    if not library and sys.platform == "linux":
        names.append("/usr/lib/wsl/lib/libnvidia-ml.so.1")
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


_shared: Nvml | None = None
_shared_lock = threading.Lock()


def nvml() -> Nvml:
    """The agent's one connection to the driver, opened when it is first asked for."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Nvml()
        return _shared


def gpu_use(exclude_pids: Collection[int]) -> dict[str, tuple[float | None, int | None]]:
    """See Nvml.gpu_use; {} without NVIDIA devices."""
    return nvml().gpu_use(exclude_pids)
