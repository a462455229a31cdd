"""Answers to single calls reach whoever waits, when the loop's thread is done with them."""

from __future__ import annotations

import threading

from fallow.sdk.reply import Replies, Reply
from fallow.wire.page import encode_results


def test_callers_are_woken_together_each_with_its_own_answer() -> None:
    page = b"".join(encode_results(["first", "second"]))
    calls = [Reply(), Reply()]
    replies = Replies()
    for offset, reply in enumerate(calls):
        replies.add(reply, page, offset)
    found: dict[int, str] = {}
    waiting = [
        threading.Thread(target=lambda at=at: found.__setitem__(at, calls[at].wait("f")), daemon=True) for at in (0, 1)
    ]
    for thread in waiting:
        thread.start()
    assert not found, "woken before the loop was done"
    replies.wake()
    for thread in waiting:
        thread.join(30)
    assert found == {0: "first", 1: "second"}
    replies.wake()  # an answer is given once: a second release of the lock would raise
