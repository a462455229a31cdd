"""Functions with environments and limits. Imported by workers of bare environments: nothing but fallow here."""

from __future__ import annotations

import ctypes

import fallow

app = fallow.App("limits")


@app.function(env=fallow.Env(pip=["six==1.17.0"]))
def uses_six(x: int) -> str:
    import six  # type: ignore[import-untyped]

    return f"{six.__version__} {x}"


@app.function(env=fallow.Env(pip=["fallow-has-no-such-dependency==1.2.3"]))
def cannot_be_built(x: int) -> int:
    return x


@app.function(memory="300MB")
def allocates(x: int) -> int:
    if x == 1:
        held = []
        while True:
            held.append(bytearray(16_000_000))
    return x


@app.function
def crashes(x: int) -> int:
    if x == 1:
        ctypes.string_at(0)
    return x


@app.function
def large(x: int) -> bytes:
    return bytes([x]) * 300_000_000


@app.function(memory="900TB")
def enormous(x: int) -> int:
    return x


@app.function(gpu="No Such Model:64")
def needs_gpus(x: int) -> int:
    return x


@app.function(cpu=4096)
def needs_cpus(x: int) -> int:
    return x
