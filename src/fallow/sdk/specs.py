"""From a function and its options to the JobSpec that goes to the pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fallow.model.errors import SettingError
from fallow.model.job import INLINE_LIMIT_BYTES, Blob, JobKind, JobSpec, Purpose, is_account
from fallow.model.tiers import Tier
from fallow.sdk.env import env_spec
from fallow.sdk.modules import zip_local_modules
from fallow.sdk.options import Options

if TYPE_CHECKING:
    from fallow.sdk.client import Client


def bytes_blob(client: Client, data: bytes) -> Blob:
    """Bytes as a Blob: inline where small, else put into the blob store (blocks)."""
    from fallow.wire.blobs import hash_segments

    if len(data) <= INLINE_LIMIT_BYTES:
        digest, size = hash_segments([data])
        return Blob(digest, size, data)
    client.ready()
    files = client.blobs.local_files
    if files is not None:  # the same code is sent along with every job
        digest, size = hash_segments([data])
        if files.use(digest, size) is not None:
            files.sync(digest)
            return Blob(digest, size)
    from fallow.sdk.room import put_waiting

    blob: Blob = client.submit_blocking(
        put_waiting(client, lambda: client.blobs.put_segments([data], purpose=Purpose.INPUTS))
    )
    return blob


def make_spec(
    client: Client,
    *,
    name: str,
    kind: JobKind,
    payload: bytes,
    options: Options,
    max_leases: int = 0,
    detached: bool = False,
    reduce: bool = False,
    total_hint: int = -1,
    page_tasks: bool = False,
    single: bool = False,
) -> JobSpec:
    """Everything of the job that is fixed. Puts a large payload, and the local modules, into the blob store."""
    from fallow.sdk.mapjob import new_job_id

    env = options.env
    modules = zip_local_modules(env.extra_modules if env else ()) if env is None or env.ship_modules else None
    return JobSpec(
        job_id=new_job_id(),
        name=name,
        kind=kind,
        client_id=client.ready().id if client.nested else client.id,
        function=bytes_blob(client, payload),
        env=env_spec(env, bytes_blob(client, modules) if modules else None),
        resources=options.resources,
        timeout_s=options.timeout_s,
        retry=options.retry,
        max_nodes=options.max_nodes,
        max_leases=max_leases,
        speculate=options.speculate,
        detached=detached,
        reduce=reduce,
        total_hint=total_hint,
        created_unix_s=time.time(),
        page_tasks=page_tasks,
        single=single,
        least_tier=_least_tier(client, options),
        network=options.network,
        account=_account(),
        beside=kind is JobKind.MAP and not detached and _is_beside(client),
    )


def _is_beside(client: Client) -> bool:
    """Whether the pool's blob store is a folder of this machine, as that of a script's own pool always is."""
    if client.nested:
        return False
    if client.found is not None and client.found.embedded is not None:
        return True
    client.ready()
    return client.blobs.local_files is not None


def _account() -> str:
    """Whom this script's jobs are for: FALLOW_ACCOUNT. Raises SettingError."""
    name = os.environ.get("FALLOW_ACCOUNT", "").strip() or "default"
    if not is_account(name):
        raise SettingError(
            f"FALLOW_ACCOUNT={name!r} cannot name an account: use letters, digits, dots, dashes, underscores, @ and +."
        )
    return name


def _least_tier(client: Client, options: Options) -> int:
    """What the function asks for. Where it does not say: a sandbox on a pool with strangers' machines, since their
    results must not be unpickled here; none on a pool of one's own, which a script's own pool always is."""
    if options.least_tier >= 0:
        return options.least_tier
    if client.found is not None and client.found.embedded is not None:
        return Tier.PROCESS
    return Tier.ISOLATED if client.ready().info.strangers else Tier.PROCESS


def dump_payload(
    fn: Callable[..., Any],
    *,
    style: Any,
    name: str,
    options: Options,
    kwargs: dict[str, Any] | None = None,
    cls_hooks: Any = None,
    reduce: Callable[[Any, Any], Any] | None = None,
) -> bytes:
    """The function as bytes for workers. Raises UnserialisableFunction."""
    from fallow.wire.code import dump_function

    return dump_function(
        fn,
        style=style,
        kwargs=kwargs or {},
        cls_hooks=cls_hooks,
        reduce=reduce,
        retry_on=options.retry_on,
        name=name,
    )
