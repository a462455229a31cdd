"""How often a request is sent again while it waits for its answer: every one may be sent twice."""

from __future__ import annotations

from fallow.wire.messages import FetchResults, Msg, SubmitJob

AGAIN_S = 0.4
"""Whoever was asked may be stopped, cut off or dead: another one answers at once."""
SUBMIT_AGAIN_S = 0.5
"""A second coordinator that is asked for a new job does work that only one of them keeps."""


def again_s(message: Msg) -> float:
    """Seconds; 0: never. What waits at a job's owner for results is repeated when the job has a new owner, or the
    asker another server."""
    if isinstance(message, FetchResults):
        return 0.0
    return SUBMIT_AGAIN_S if isinstance(message, SubmitJob) else AGAIN_S
