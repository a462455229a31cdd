"""Asking the pool until it answers: every request may be lost, and may be sent again.

A request goes to whichever coordinator the bus picks, or to a job's owner. One that is stopped or cut off answers
nothing, so a request that waits is repeated to others; and a job whose owner is gone is looked for, so that somebody
takes it up.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from fallow.model.errors import PoolUnreachable
from fallow.wire import subjects
from fallow.wire.messages import FindJob, Refused
from fallow.wire.repeats import AGAIN_S, again_s

if TYPE_CHECKING:
    from fallow.model.ids import JobId
    from fallow.sdk.client import Client
    from fallow.wire.messages import Msg

MOST_DELAY_S = 0.25
REQUEST_MOST_S = 15.0
"""Each try gets more time: a killed coordinator is noticed soon, and a slow one gets its chance."""
SLOW_AFTER_S = 20.0
"""Requests are lost while a coordinator or a server dies, and asked again promptly. A pool that answers none for so
long is slow rather than broken: then each one waits longer, not to add to its load."""
LOOK_EVERY_S = 0.5
RETRIED = frozenset({"not_owner", "overloaded"})


async def ask(client: Client, subject: str, message: Msg, timeout_s: float, patience_s: float, delay_s: float) -> Any:
    """See Client.ask."""
    from fallow.sdk.failures import refusal

    loop = asyncio.get_running_loop()
    began = loop.time()
    delay = min(0.02, delay_s)
    job_id: JobId | None = getattr(message, "job_id", None)
    looking: asyncio.Future[Any] | None = None
    looked_at = 0.0
    repeat_s = again_s(message)
    while True:
        try:
            reply = await client.transport.request(subject, message, timeout_s, repeat_s)
        except TimeoutError:
            waited_s = loop.time() - began
            client.check_alive()
            if waited_s > patience_s:
                raise PoolUnreachable(f"the pool has not answered for {waited_s:.0f} s.") from None
            client.in_trouble(loop.time())
            if looking is not None and looking.done():
                if (refused := looking.result()) is not None:
                    raise refusal(refused) from None
                looking = None
            if job_id is not None and looking is None and loop.time() - looked_at >= LOOK_EVERY_S:
                looked_at = loop.time()
                looking = client.spawn(_look_for(client, job_id, timeout_s))
            if waited_s > SLOW_AFTER_S:
                timeout_s = max(timeout_s, min(timeout_s * 1.5, REQUEST_MOST_S))
                repeat_s = 0.0
            else:
                delay = min(delay, MOST_DELAY_S)
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))
            delay = min(delay * 1.6, delay_s)
            continue
        client.answered()
        if not isinstance(reply, Refused):
            return reply
        if reply.kind not in RETRIED or loop.time() - began > patience_s:
            raise refusal(reply)
        await asyncio.sleep(max(reply.retry_after_s, delay) * random.uniform(0.7, 1.3))
        delay = min(delay * 1.6, delay_s)


async def _look_for(client: Client, job_id: JobId, timeout_s: float) -> Refused | None:
    """A job that had ended when its owner died is nobody's until somebody asks the pool for it. Returns a refusal that
    is final: there is no such job."""
    try:
        reply = await client.transport.request(subjects.POOL, FindJob(job_id), timeout_s, AGAIN_S)
    except TimeoutError:
        return None
    return reply if isinstance(reply, Refused) and reply.kind not in RETRIED else None
