"""How fast the visible GPU multiplies matrices of 32-bit floats, through cuBLAS where it can be had.

`python -m fallow.agent.devices.product` prints Gflop/s. The result of the product is looked at: a library that only
returns has no speed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import sysconfig
import time
from pathlib import Path

from fallow.agent.devices.cuda import Cuda, CudaError

SIZE = 4096
SECONDS = 0.5


def cublas_paths() -> list[str]:
    """Where cuBLAS may be: on the loader's path, or in one of NVIDIA's wheels beside this interpreter."""
    names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so.11"]
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    wheels = [str(path) for path in sorted(site.glob("*/lib/libcublas.so.*"), reverse=True)]
    return names + wheels


def _load() -> ctypes.CDLL:
    for name in cublas_paths():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError("cuBLAS is not found; `pip install nvidia-cublas-cu12` lets the GPU be measured")


def measure(size: int = SIZE, seconds: float = SECONDS) -> float:
    """Gflop/s of products of two `size` x `size` matrices, the best of several runs. Raises CudaError."""
    cuda = Cuda()
    library = _load()
    handle = ctypes.c_void_p()
    _check("cublasCreate_v2", library.cublasCreate_v2(ctypes.byref(handle)))
    matrices = []
    for _ in range(3):
        pointer = cuda.allocate(4 * size * size)
        if pointer is None:
            raise CudaError("there is too little free memory on the GPU to measure it")
        cuda.fill(pointer, 1.0, size * size)
        matrices.append(pointer)
    one, zero, n = ctypes.c_float(1.0), ctypes.c_float(0.0), ctypes.c_int(size)

    def multiply() -> None:
        status = library.cublasSgemm_v2(
            *(handle, ctypes.c_int(0), ctypes.c_int(0), n, n, n),
            *(ctypes.byref(one), matrices[0], n, matrices[1], n),
            *(ctypes.byref(zero), matrices[2], n),
        )
        _check("cublasSgemm_v2", status)

    multiply()
    cuda.synchronise()
    best, repeat = float("inf"), 1
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        began = time.perf_counter()
        for _ in range(repeat):
            multiply()
        cuda.synchronise()
        took = time.perf_counter() - began
        best = min(best, took / repeat)
        if took < 0.02:
            repeat *= 2
    if cuda.read_float(matrices[2]) != size:
        raise CudaError("the GPU's product of matrices is wrong")
    for pointer in matrices:
        cuda.free(pointer)
    return 2.0 * size**3 / best / 1e9


def _check(name: str, status: int) -> None:
    if status:
        raise CudaError(f"{name} answered {status}")


def main() -> int:
    try:
        speed = measure(int(os.environ.get("FALLOW_PRODUCT_SIZE", SIZE)))
    except (CudaError, AttributeError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({"gflops": round(speed, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
