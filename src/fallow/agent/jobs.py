"""What the node has ready of each job: environment, own modules, function; and the highest epoch of its owner."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from msgspec import Struct

from fallow.agent.blob_access import BlobAccess
from fallow.agent.environments import Environments
from fallow.agent.modules import unpack_modules, unpacked
from fallow.agent.workers import WorkerKind
from fallow.model.errors import EnvironmentFailed, PythonMismatch
from fallow.model.ids import JobId
from fallow.model.job import JobSpec
from fallow.model.parts import Death, InputPage

log = logging.getLogger("fallow.agent")

EPOCHS_LIMIT = 10_000
NO_ROOM_WORDS = ("No space left on device", "Disk quota exceeded")
BLAMED_LIMIT = 1000
"""Pages of one job that are remembered because a worker died while it unpickled them."""
READY_LIMIT = 64
"""Jobs that are kept ready though no slot works for them now."""


class Ready(Struct, frozen=True):
    """A job that can run here."""

    spec: JobSpec
    kind: WorkerKind
    function: bytes


class NotReady(Struct, frozen=True):
    """A job that cannot. `kind` and `fatal` as in AssignRefused."""

    kind: str
    message: str
    fatal: bool


class Jobs:
    """Jobs that slots are assigned to. A job is prepared once, however many slots ask."""

    def __init__(
        self,
        environments: Environments,
        blobs: BlobAccess,
        modules: Path,
        node_name: str,
        in_use: Callable[[], Container[JobId]],
        confined: bool = False,
    ) -> None:
        self._confined = confined
        self._environments = environments
        self._blobs = blobs
        self._modules = modules
        self._node_name = node_name
        self._in_use = in_use
        self._ready: dict[JobId, Ready] = {}
        self._preparing: dict[JobId, asyncio.Task[Ready | NotReady]] = {}
        self._epochs: OrderedDict[JobId, int] = OrderedDict()
        self._blamed: dict[JobId, set[int]] = {}
        """A task of each page whose inputs are unpickled one after the other."""

    def get(self, job_id: JobId) -> Ready | None:
        return self._ready.get(job_id)

    def accept_epoch(self, job_id: JobId, epoch: int) -> bool:
        """Note the epoch of an owner's message; False where a newer owner has spoken already."""
        known = self._epochs.get(job_id, -1)
        if epoch < known:
            return False
        self._epochs[job_id] = epoch
        self._epochs.move_to_end(job_id)
        while len(self._epochs) > EPOCHS_LIMIT:
            self._epochs.popitem(last=False)
        return True

    def blame_inputs(self, job_id: JobId, death: Death) -> bool:
        """A worker died while it unpickled the inputs of a page together. From now on they are unpickled one after the
        other, which names the task. False: that has been tried, or says nothing."""
        blamed = self._blamed.setdefault(job_id, set())
        if death.kind == "cancelled" or death.index in blamed or len(blamed) >= BLAMED_LIMIT:
            return False
        blamed.add(death.index)
        return True

    def to_unpickle_singly(self, job_id: JobId, pages: Iterable[InputPage]) -> frozenset[int]:
        """Starts of those of these pages whose inputs are to be unpickled one after the other."""
        blamed = self._blamed.get(job_id)
        if not blamed:
            return frozenset()
        return frozenset(page.start for page in pages if any(page.start <= index < page.stop for index in blamed))

    def paths_in_use(self) -> set[str]:
        """Interpreters and folders of modules of the jobs that slots work for, and of those that are being prepared."""
        used = self._in_use()
        return {
            path
            for job_id, ready in list(self._ready.items())
            if job_id in used
            for path in (ready.kind.python, ready.kind.modules)
            if path
        }

    def forget_missing(self) -> None:
        """Let go of jobs whose environment or modules were removed: they are prepared anew if they come again."""
        used = self._in_use()
        for job_id, ready in list(self._ready.items()):
            paths = [Path(path) for path in (ready.kind.python, ready.kind.modules) if path]
            if job_id not in used and not all(path.exists() for path in paths):
                del self._ready[job_id]

    def epoch(self, job_id: JobId) -> int:
        """The highest epoch that an owner of the job has spoken with; 0 where none has."""
        return self._epochs.get(job_id, 0)

    def prepare(self, spec: JobSpec, done: Callable[[Ready | NotReady], None]) -> None:
        """Make the job ready and say so; at once where nothing has to be built or fetched."""
        ready = self._ready.get(spec.job_id) or self._at_once(spec)
        if ready is not None:
            self._keep(ready)
            done(ready)
            return
        task = self._preparing.get(spec.job_id)
        if task is None:
            task = asyncio.ensure_future(self._prepare(spec))
            self._preparing[spec.job_id] = task
            task.add_done_callback(lambda _task: self._preparing.pop(spec.job_id, None))

        def finish(task: asyncio.Task[Ready | NotReady]) -> None:
            if not task.cancelled():
                done(task.result())

        task.add_done_callback(finish)

    def forget(self, job_id: JobId) -> None:
        """The job has ended. Its epoch is remembered."""
        self._ready.pop(job_id, None)
        self._blamed.pop(job_id, None)
        task = self._preparing.pop(job_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        for job_id in list(self._preparing):
            self.forget(job_id)

    # ------------------------------------------------------------ inside

    def _keep(self, ready: Ready) -> None:
        self._ready.pop(ready.spec.job_id, None)
        self._ready[ready.spec.job_id] = ready
        if len(self._ready) > READY_LIMIT:
            used = self._in_use()
            for job_id in [job_id for job_id in self._ready if job_id not in used][: len(self._ready) - READY_LIMIT]:
                if job_id != ready.spec.job_id:
                    del self._ready[job_id]

    def _at_once(self, spec: JobSpec) -> Ready | None:
        python = self._environments.ready(spec.env)
        if python is None or spec.function.data is None or spec.env.modules is not None:
            return None
        return Ready(spec, self._kind(spec, python, ""), bytes(spec.function.data))

    async def _prepare(self, spec: JobSpec) -> Ready | NotReady:
        try:
            python = await self._environments.ensure(spec.env)
            modules = ""
            if spec.env.modules is not None:
                modules = str(await self._unpack(spec))
            function = await self._blobs.bytes_of(spec.function)
        except PythonMismatch as error:
            return NotReady("python", f"{self._node_name}: {error}", fatal=False)
        except EnvironmentFailed as error:
            # A full disk is this node's trouble, not the job's.
            return NotReady("environment", str(error), fatal=not any(words in str(error) for words in NO_ROOM_WORDS))
        except Exception as error:
            log.exception("job %s cannot be prepared", spec.job_id)
            return NotReady("environment", f"{self._node_name} cannot prepare the job: {error}", fatal=False)
        ready = Ready(spec, self._kind(spec, python, modules), function)
        self._keep(ready)
        return ready

    async def _unpack(self, spec: JobSpec) -> Path:
        blob = spec.env.modules
        assert blob is not None
        if (known := unpacked(blob.digest, self._modules)) is not None:  # the store need not even answer
            return known
        archive: bytes | Path = (
            bytes(blob.data) if blob.data is not None else await self._blobs.path(blob.digest, blob.size)
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, unpack_modules, blob.digest, archive, self._modules)

    def _kind(self, spec: JobSpec, python: str, modules: str) -> WorkerKind:
        cpu = max(1, spec.resources.cpu)
        if not self._confined:
            return WorkerKind(python, modules, cpu, spec.resources.gpu)
        return WorkerKind(python, modules, cpu, spec.resources.gpu, str(spec.job_id), spec.network)
