"""joblib on the pool: `with joblib.parallel_config("fallow"): ...`, and scikit-learn runs on it unchanged.

Importing fallow is enough: the backend is registered as soon as joblib is there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from fallow.model.errors import FallowError, SettingError, UnserialisableInput
from fallow.sdk.call_encoding import encode_call
from fallow.sdk.client import get_client
from fallow.sdk.executor import Executor
from fallow.sdk.joblib_packing import Packer, run_packed


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
        self._packer = Packer()

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
        future: Future[Any]
        try:
            packed = self._packer.pack(func)
        except FallowError:
            raise
        except Exception as error:
            future = Future()
            future.set_exception(_blame(func, error))
        else:
            future = self._executor.submit(run_packed, *packed)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def stop_call(self) -> None:
        self._packer.clear()

    def terminate(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)
        self._packer.clear()
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


def _blame(batch: Any, error: Exception) -> Exception:
    """Which argument of which call cannot be pickled, where it is one."""
    try:
        for call in batch.items:
            encode_call(call)
    except UnserialisableInput as named:
        return named
    return error
