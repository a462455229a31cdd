"""joblib on the pool: `with joblib.parallel_config("fallow"): ...`, and scikit-learn runs on it unchanged.

Importing fallow is enough: the backend is registered as soon as joblib is there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from fallow.model.errors import SettingError
from fallow.sdk.client import get_client
from fallow.sdk.executor import Executor
from fallow.sdk.objects import Ref, put

PUT_ABOVE_BYTES = 1 << 20
"""Arrays above this are shipped once for a whole Parallel call, and mapped by every task that gets them."""


class FallowBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Options given to parallel_config("fallow", ...) are those of fallow.Executor."""

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True  # threads of a task are its CPU slots: it gets as many
    uses_threads = False
    supports_sharedmem = False
    default_n_jobs = -1

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any):
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options
        self._executor: Executor | None = None
        self._n_jobs = 1
        self._refs: dict[int, tuple[Any, Ref[Any]]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Slots of the pool for -1, one less for -2 and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs > 0:
            return n_jobs
        return max(1, get_client().slots() + 1 + n_jobs)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **_ignored: Any
    ) -> int:
        n_jobs = self.effective_n_jobs(n_jobs)
        self.parallel = parallel
        self._n_jobs = n_jobs
        options = dict(self._options)
        threads = self.inner_max_num_threads
        if threads is not None and options.setdefault("cpu", threads) != threads:
            raise SettingError(
                f"cpu={options['cpu']} and inner_max_num_threads={threads} contradict each other: a task has as many "
                "threads as CPU slots. Give one of them."
            )
        self._executor = Executor(n_jobs, name="joblib", **options)
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        assert self._executor is not None
        items = getattr(func, "items", None)
        if isinstance(items, list):
            func.items = [self._with_refs(item) for item in items]
        future: Future[Any] = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _with_refs(self, item: Any) -> Any:
        """A delayed call with its large arrays put into the pool."""
        fn, args, kwargs = item
        return fn, tuple(map(self._ref, args)), {name: self._ref(value) for name, value in kwargs.items()}

    def _ref(self, value: Any) -> Any:
        size = getattr(value, "nbytes", 0)
        if type(value).__module__.partition(".")[0] != "numpy" or not isinstance(size, int) or size < PUT_ABOVE_BYTES:
            return value
        known = self._refs.get(id(value))
        if known is None:
            known = self._refs[id(value)] = (value, put(value))
        return known[1]

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def stop_call(self) -> None:
        self._refs.clear()

    def terminate(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)
        self._refs.clear()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        executor = self._executor
        if executor is not None:
            executor.abort()
        if ensure_ready:
            self.configure(n_jobs=self._n_jobs, parallel=self.parallel)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        # A task has one slot: Parallel inside it runs one after another.
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def register() -> None:
    """Make joblib know the backend by the name 'fallow'."""
    register_parallel_backend("fallow", FallowBackend)
