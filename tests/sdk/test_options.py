"""What a user may set, and what is said about what they may not."""

from __future__ import annotations

import pytest

import fallow
from fallow.model.errors import SettingError
from fallow.model.job import GpuSpec
from fallow.sdk.options import read_gpu, read_options, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 1000**3),
        ("2 GiB", 2 * 1024**3),
        ("512m", 512 * 1000**2),
        ("1.5TB", int(1.5 * 1000**4)),
        (5_000_000, 5_000_000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert read_size("memory", text) == size


@pytest.mark.parametrize("text", ["", "two", "2XB", "-1GB", "16", 3, None, True])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(SettingError, match="memory"):
        read_size("memory", text)


@pytest.mark.parametrize(
    ("value", "spec"),
    [
        (None, GpuSpec()),
        (2, GpuSpec(count=2)),
        ("24GB", GpuSpec(count=1, min_memory_bytes=24 * 1000**3)),
        ("24GB:2", GpuSpec(count=2, min_memory_bytes=24 * 1000**3)),
        ("H100:8", GpuSpec(count=8, models=("H100",))),
        (["A100", "H100"], GpuSpec(count=1, models=("A100", "H100"))),
        (0.25, GpuSpec(count=1, share=0.25)),
        (2.0, GpuSpec(count=2)),
        ("A100:0.5", GpuSpec(count=1, models=("A100",), share=0.5)),
        ("24GB:0.5", GpuSpec(count=1, min_memory_bytes=24 * 1000**3, share=0.5)),
        (["A100:0.5", "H100:0.5"], GpuSpec(count=1, models=("A100", "H100"), share=0.5)),
    ],
)
def test_gpus(value: object, spec: GpuSpec) -> None:
    assert read_gpu(value) == spec  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        0,
        True,
        "",
        "H100:x",
        [],
        ["H100:2", "A100:1"],
        ["24GB", "H100"],
        [1],
        "H100:0",
        1.5,
        0.01,
        -0.5,
        float("nan"),
        float("inf"),
        "A100:1.5",
        "A100:.5",
        ["A100:0.5", "H100"],
        b"A100",
        object(),
    ],
)
def test_gpus_refused(value: object) -> None:
    with pytest.raises(SettingError, match="gpu"):
        read_gpu(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "60"},
        {"timeout": float("nan")},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": True},
        {"cpu": 0},
        {"cpu": 0.5},
        {"max_nodes": 0},
        {"env": ["numpy"]},
    ],
)
def test_options_refused(options: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        read_options(**options)  # type: ignore[arg-type]


def test_unknown_option_names_the_known_ones() -> None:
    app = fallow.App("x")
    with pytest.raises(SettingError, match="timeout, retries"):
        app.function(timeouts=3)  # type: ignore[call-overload]


def test_retry_policies() -> None:
    assert read_options(retries=2).retry.retries == 2
    assert read_options(retries=2).retry_on is None
    retry = fallow.Retry(3, backoff_s=2, retry_on=(KeyError, OSError))
    options = read_options(retries=retry)
    assert options.retry.delay_s(2) == 4.0
    assert options.retry_on == (KeyError, OSError)
    with pytest.raises(SettingError, match="exception type"):
        fallow.Retry(retry_on=int)  # type: ignore[arg-type]


def test_with_options_changes_only_what_is_named() -> None:
    app = fallow.App("x")

    @app.function(timeout=5, retries=2, cpu=2, memory="2GB")
    def f(x: int) -> int:
        return x

    changed = f.with_options(timeout=7, memory="3GB").options
    assert changed.timeout_s == 7
    assert changed.retry.retries == 2
    assert changed.resources.cpu == 2
    assert changed.resources.memory_bytes == 3 * 1000**3


@pytest.mark.parametrize("thing", [3, None, "f", int])
def test_only_functions_are_decorated(thing: object) -> None:
    with pytest.raises(SettingError, match=r"@app\.function takes a function|takes a function"):
        fallow.App("x").function()(thing)  # type: ignore[arg-type]


def test_decorating_twice_is_said() -> None:
    app = fallow.App("x")
    f = app.function(lambda x: x)
    with pytest.raises(SettingError, match="already"):
        app.function(f)


def test_class_without_methods_is_said() -> None:
    with pytest.raises(SettingError, match=r"fallow\.method"):

        @fallow.App("x").cls
        class Nothing:
            pass


def test_calling_a_function_runs_it_here() -> None:
    @fallow.App("x").function
    def f(x: int, y: int = 1) -> int:
        """Doc."""
        return x + y

    assert f(1) == f.local(1) == 2
    assert f.__name__ == "f"
    assert f.__doc__ == "Doc."


def test_function_is_as_cheap_to_import_as_promised() -> None:
    import subprocess
    import sys

    source = (
        "import sys, fallow; app = fallow.App('x')\n"
        "@app.function(timeout=3)\ndef f(x): return x\n"
        "heavy = {'nats', 'asyncio', 'cloudpickle', 'rich', 'aiohttp', 'psutil', 'numpy', 'joblib', 'blake3'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
