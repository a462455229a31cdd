"""What a user may set on a function, checked and brought into the terms of model.job."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from fallow.model.errors import SettingError
from fallow.model.job import GpuSpec, Resources, RetryPolicy
from fallow.model.tiers import TIER_WORDS

if TYPE_CHECKING:
    from fallow.sdk.env import Env

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*$", re.IGNORECASE)
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_UNITS_BINARY = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_GPU_MODEL = re.compile(r"^[A-Za-z][A-Za-z0-9 ._-]*$")

_GPU_COUNT = re.compile(r"^\s*\d+(?:\.\d+)?\s*$")
_GPU_FORMS = "write a count, a part of one such as 0.25, a size such as '24GB' or a model such as 'H100:2'"

MAX_RETRIES = 1000
LEAST_GPU_SHARE = 0.05
MAX_TIMEOUT_S = 30 * 24 * 3600.0


class Retry:
    """How often, and when, a task that raised or ran out of time is run again.

    retries: attempts after the first. backoff_s: seconds before the first retry, times `factor` for each further
    one, never above max_backoff_s. retry_on: exception types that are worth a retry (default: every Exception)."""

    __slots__ = ("policy", "retry_on")

    def __init__(
        self,
        retries: int = 3,
        *,
        backoff_s: float = 1.0,
        factor: float = 2.0,
        max_backoff_s: float = 60.0,
        retry_on: type[BaseException] | Iterable[type[BaseException]] | None = None,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
            raise SettingError(f"retries must be a whole number from 0 to {MAX_RETRIES}, not {retries!r}.")
        for name, value in (("backoff_s", backoff_s), ("max_backoff_s", max_backoff_s)):
            _number(name, value, low=0.0, high=24 * 3600.0)
        _number("factor", factor, low=1.0, high=100.0)
        self.policy = RetryPolicy(retries, float(backoff_s), float(factor), float(max_backoff_s))
        self.retry_on = _exception_types(retry_on)

    def __repr__(self) -> str:
        return f"Retry({self.policy.retries}, backoff_s={self.policy.backoff_s:g}, factor={self.policy.factor:g})"


class Options(Struct, frozen=True):
    """Checked options of one function. Times in seconds, memory in bytes; 0 means 'no limit'."""

    timeout_s: float = 0.0
    retry: RetryPolicy = RetryPolicy()
    retry_on: tuple[type[BaseException], ...] | None = None
    resources: Resources = Resources()
    env: Env | None = None
    max_nodes: int = 0
    speculate: bool = True
    least_tier: int = -1
    """Of the sandbox (model.tiers.Tier); -1: as the pool needs it, see specs.make_spec."""
    network: bool = False

    def updated(self, **changes: Any) -> Options:
        """The same with other settings, given as to `read_options`."""
        fresh = read_options(**changes)
        names: list[str] = []
        if "timeout" in changes:
            names += ["timeout_s"]
        if "retries" in changes:
            names += ["retry", "retry_on"]
        names += [name for name in ("env", "max_nodes", "speculate", "network") if name in changes]
        if "sandbox" in changes:
            names += ["least_tier"]
        result = replace(self, **{name: getattr(fresh, name) for name in names})
        parts = {"cpu": "cpu", "memory": "memory_bytes", "gpu": "gpu"}
        new = {part: getattr(fresh.resources, part) for key, part in parts.items() if key in changes}
        if new:
            old = {part: getattr(self.resources, part) for part in parts.values()}
            result = replace(result, resources=Resources(**{**old, **new}))
        return result


def read_options(
    *,
    timeout: float | None = None,
    retries: int | Retry | None = None,
    cpu: int | None = None,
    memory: str | int | None = None,
    gpu: str | int | float | Iterable[str] | None = None,
    env: Env | None = None,
    max_nodes: int | None = None,
    speculate: bool = True,
    sandbox: str | None = None,
    network: bool = False,
) -> Options:
    """Check what the user set. Raises SettingError that says what is wrong and what is expected."""
    retry = retries if isinstance(retries, Retry) else Retry(_retries(retries), backoff_s=0.0)
    return Options(
        timeout_s=0.0 if timeout is None else _number("timeout", timeout, low=0.001, high=MAX_TIMEOUT_S),
        retry=retry.policy,
        retry_on=retry.retry_on,
        resources=Resources(
            cpu=_whole("cpu", cpu, 1, 4096) if cpu is not None else 1,
            memory_bytes=read_size("memory", memory) if memory is not None else 0,
            gpu=read_gpu(gpu),
        ),
        env=_env(env),
        max_nodes=_whole("max_nodes", max_nodes, 1, 1_000_000) if max_nodes is not None else 0,
        speculate=_flag("speculate", speculate),
        least_tier=read_sandbox(sandbox),
        network=_flag("network", network),
    )


def read_sandbox(value: str | None) -> int:
    """The tier by its word; -1 for None."""
    if value is None:
        return -1
    tier = TIER_WORDS.get(value) if isinstance(value, str) else None
    if tier is None:
        raise SettingError(f"sandbox={value!r}: write one of {', '.join(map(repr, TIER_WORDS))}.")
    return int(tier)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value!r}: write True or False.")
    return value


def read_size(name: str, value: str | int) -> int:
    """Bytes from a number of them or from text such as '2GB', '512 MiB'."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.match(value) if isinstance(value, str) else None
        if not match:
            raise SettingError(f"{name}={value!r} is not a size. Write bytes as a number, or text such as '2GB'.")
        units = _UNITS_BINARY if match[3] else _UNITS
        size = int(float(match[1]) * units[match[2].upper()])
    if size < 1024 * 1024:
        raise SettingError(f"{name}={value!r} is less than 1 MB. Did you leave out the unit, as in '2GB'?")
    return size


def read_gpu(value: str | int | float | Iterable[str] | None) -> GpuSpec:
    """'24GB' (any GPU with that memory), 'H100', 'H100:2', a count, a part of one (0.25, 'A100:0.5'), or a list of
    models that will all do."""
    if value is None:
        return GpuSpec()
    if isinstance(value, float):
        return _part_or_count(value, value)
    if isinstance(value, bool) or not isinstance(value, (str, int, Iterable)):
        raise SettingError(f"gpu={value!r}: {_GPU_FORMS}.")
    if isinstance(value, int):
        return GpuSpec(count=_whole("gpu", value, 1, 64))
    parts = [value] if isinstance(value, str) else list(value)
    if not parts:
        raise SettingError("gpu=[] names no GPU. Leave it out for functions that need none.")
    read = [_one_gpu(part) for part in parts]
    counts = {(spec.count, spec.share) for spec in read}
    if len(counts) > 1:
        raise SettingError(f"gpu={parts!r}: all alternatives must have the same count.")
    count, share = counts.pop()
    models = tuple(model for spec in read for model in spec.models)
    sizes = [spec.min_memory_bytes for spec in read if spec.min_memory_bytes]
    if len(parts) > 1 and sizes:
        raise SettingError(f"gpu={parts!r}: a list names models; give a size alone, as in gpu='24GB'.")
    return GpuSpec(count=count, min_memory_bytes=sizes[0] if sizes else 0, models=models, share=share)


def _one_gpu(text: object) -> GpuSpec:
    if not isinstance(text, str):
        raise SettingError(f"gpu={text!r}: {_GPU_FORMS}.")
    name, colon, count_text = text.partition(":")
    if colon and not _GPU_COUNT.match(count_text):
        raise SettingError(f"gpu={text!r}: after the colon comes a count or a part of one, as in 'H100:2', 'A100:0.5'.")
    spec = _part_or_count(float(count_text), text) if colon else GpuSpec(count=1)
    if _SIZE.match(name) and not name.strip().isdigit():
        return replace(spec, min_memory_bytes=read_size("gpu", name))
    if not _GPU_MODEL.match(name.strip()):
        raise SettingError(f"gpu={text!r}: {_GPU_FORMS}.")
    return replace(spec, models=(name.strip(),))


def _part_or_count(number: float, value: object) -> GpuSpec:
    if LEAST_GPU_SHARE <= number < 1:
        return GpuSpec(count=1, share=number)
    if math.isfinite(number) and number == int(number) and 1 <= number <= 64:
        return GpuSpec(count=int(number))
    raise SettingError(
        f"gpu={value!r}: a part of one GPU lies between {LEAST_GPU_SHARE:g} and 1, and a count is a whole number "
        f"from 1 to 64."
    )


def _retries(value: int | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"retries={value!r}: write a whole number or fallow.Retry(...).")
    return value


def _number(name: str, value: object, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SettingError(
            f"{name}={value!r} is not a number of seconds."
            if name == "timeout"
            else f"{name}={value!r} is not a number."
        )
    if not low <= value <= high:
        raise SettingError(f"{name}={value!r} must lie between {low:,g} and {high:,.12g}.")
    return float(value)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{name}={value!r} must be a whole number.")
    if not low <= value <= high:
        raise SettingError(f"{name}={value!r} must lie between {low} and {high}.")
    return value


def _exception_types(
    value: type[BaseException] | Iterable[type[BaseException]] | None,
) -> tuple[type[BaseException], ...] | None:
    if value is None:
        return None
    if not isinstance(value, Iterable):
        value = (value,)
    types = tuple(value)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise SettingError(f"retry_on: {kind!r} is not an exception type.")
    return types


def _env(value: object) -> Env | None:
    if value is None:
        return None
    from fallow.sdk.env import Env

    if not isinstance(value, Env):
        raise SettingError(f"env={value!r} is not an environment. Write env=fallow.Env(pip=['numpy']).")
    return value


def check_callable(fn: object, what: str) -> Callable[..., Any]:
    """The function, or SettingError in words."""
    if isinstance(fn, type):
        raise SettingError(f"{what} takes a function; {fn.__name__!r} is a class. Use @app.cls for classes.")
    if not callable(fn):
        raise SettingError(f"{what} takes a function, not {fn!r}, which cannot be called.")
    return fn
