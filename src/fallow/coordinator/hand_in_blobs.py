"""Results in files, when they are handed in: one that was deleted meanwhile counts as not handed in, so that its tasks
run again. That can be where the same bytes were garbage of another job when they were put, and their name came late."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from fallow.coordinator.blob_refs import BlobRefs
from fallow.wire.messages import HandIn

log = logging.getLogger(__name__)


def without_lost(message: HandIn, refs: BlobRefs, is_there: Callable[[str], bool] | None, now: float) -> HandIn:
    """What of it is there. What is not going to be recorded is garbage from now on. `is_there`: see Context. `now`:
    monotonic seconds."""
    lost = set()
    for page in message.results:
        digest = page.page.digest
        if page.page.data is None and not refs.needed(digest):
            refs.add(digest)  # first counted, then looked for: whoever deletes it looks the other way round
            if is_there is not None and not is_there(digest):
                lost.add(digest)
            refs.drop(digest, now)
    if not lost:
        return message
    log.warning("%d results of %s were deleted before they were handed in: they run again", len(lost), message.job_id)
    return msgspec.structs.replace(
        message, results=tuple(page for page in message.results if page.page.digest not in lost)
    )
