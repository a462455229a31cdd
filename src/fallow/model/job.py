"""What a job is: its code, environment, limits and policies."""

from __future__ import annotations

import re
from enum import StrEnum

from msgspec import Struct

from fallow.model.ids import ClientId, Digest, JobId

_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}")


def is_account(text: str) -> bool:
    """Whether the text may name an account."""
    return bool(_ACCOUNT.fullmatch(text))


class JobKind(StrEnum):
    """map: one function over a stream of inputs. calls: a standing job that single calls append to;
    its client keeps the inputs until it has the answers, so nothing of it is journalled but the row."""

    MAP = "map"
    CALLS = "calls"


class Purpose(StrEnum):
    """What a blob is put for: who will name it, and who has the disk's last room."""

    OBJECT = "object"
    """Scripts name it, and nobody of the pool can tell: it stays until it was not used for long."""
    INPUTS = "inputs"
    """A job's inputs or function, which its owner counts."""
    RESULTS = "results"
    """Of a job too: they may take what inputs must leave free."""


class Blob(Struct, frozen=True, array_like=True):
    """Bytes by content: inline where `data` is set (at most INLINE_LIMIT_BYTES), else in the blob store."""

    digest: Digest
    size: int
    data: bytes | None = None


INLINE_LIMIT_BYTES = 256 * 1024
"""Pages and function payloads up to this size travel and are stored inline; larger ones go to the blob store."""


class RetryPolicy(Struct, frozen=True, array_like=True):
    """Retries of tasks that raised or timed out. The exception filter travels inside the function payload."""

    retries: int = 0
    backoff_s: float = 0.0
    factor: float = 2.0
    max_backoff_s: float = 60.0

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` (1 is the first retry)."""
        return min(self.max_backoff_s, self.backoff_s * self.factor ** max(0, attempt - 1))


class EnvSpec(Struct, frozen=True, array_like=True):
    """An environment to build on the node. Empty requirements: the agent's own interpreter and packages."""

    python: str = ""
    """Minor version such as '3.11' that inputs and function were pickled with."""
    requirements: tuple[str, ...] = ()
    """Lines for `uv pip install`."""
    allow_sdist: bool = False
    modules: Blob | None = None
    """Zip of the customer's own local modules, put first on sys.path."""


class GpuSpec(Struct, frozen=True, array_like=True):
    count: int = 0
    min_memory_bytes: int = 0
    models: tuple[str, ...] = ()
    share: float = 1.0
    """Of one GPU's memory and time, where below 1: the task is content with a part."""


class Resources(Struct, frozen=True, array_like=True):
    cpu: int = 1
    """CPU slots that one task takes; BLAS and OpenMP get as many threads."""
    memory_bytes: int = 0
    """Limit for one worker's resident memory; 0: none."""
    gpu: GpuSpec = GpuSpec()


class JobSpec(Struct, frozen=True, array_like=True):
    """Everything that is fixed when a job is submitted."""

    job_id: JobId
    name: str
    kind: JobKind
    client_id: ClientId
    function: Blob
    """Payload made by wire.code.dump_function; opaque to all but the worker."""
    env: EnvSpec = EnvSpec()
    resources: Resources = Resources()
    timeout_s: float = 0.0
    """Per task; 0: none."""
    retry: RetryPolicy = RetryPolicy()
    max_nodes: int = 0
    """0: any number."""
    max_leases: int = 0
    """Most leases at once (Executor's max_workers); 0: any number."""
    speculate: bool = True
    detached: bool = False
    reduce: bool = False
    """Results of a lease are combined on the node; a reduced range is atomic."""
    total_hint: int = -1
    """Expected number of tasks where the caller knows it; -1: unknown."""
    account: str = "default"
    """Whom the job is for, as its client says: what limits of accounts count."""
    trace: str = ""
    """W3C traceparent of the caller."""
    created_unix_s: float = 0.0
    page_tasks: bool = False
    """Ranges end where input pages end (set by Executor(chunksize=...))."""
    least_tier: int = 0
    """Least tier of sandbox that the job accepts (model.tiers.Tier)."""
    network: bool = False
    """Its tasks want to reach public addresses; matters only inside a sandbox."""
    single: bool = False
    """One spawned call: whoever finds the job again gets its value, not a list of one."""
    beside: bool = False
    """Its client has the blob store's folder at hand, and nobody misses results that a loss of power takes: nodes that
    have it too hand in results of some size as files."""


class AccountLimits(Struct, frozen=True):
    """What the jobs of one account may have of a pool at once; 0: no limit."""

    jobs: int = 0
    """That have not ended."""
    slots: int = 0


class JobCounts(Struct, frozen=True, array_like=True):
    """Progress in numbers of tasks."""

    inputs: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    retried: int = 0
    """Tasks run again after a death, a timeout or a lost node."""
    node_losses: int = 0
    worker_deaths: int = 0
    doubled: int = 0
    wasted_s: float = 0.0
    """Run time that was lost because owners wanted their machines back."""


class JobInfo(Struct, frozen=True):
    """What listings and handles show of a job."""

    job_id: JobId
    name: str
    kind: JobKind
    state: str
    reason: str
    counts: JobCounts
    total: int
    """Number of inputs once known, else -1."""
    detached: bool
    account: str
    created_unix_s: float
    ended_unix_s: float = 0.0
    nodes: dict[str, int] = {}
    """Tasks done by each node, by the node's name."""
    epoch: int = 0
    reason_kind: str = ""
    """Why it ended, for programs: 'environment', 'setup', 'python', 'too_large', 'workers', 'client_silent', 'input',
    'cancelled' or ''."""
    slots: int = 0
    """Slots that work on it now."""
    single: bool = False
    """One spawned call, not a map."""
    least_tier: int = 0
    """As its JobSpec has it: above PROCESS its results are plain data."""
    node_count: int = 0
    """How many nodes did tasks of it, even where `nodes` does not name them."""
