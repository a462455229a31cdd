"""How far this coordinator is behind: a word to itself through the message server, and how long that takes.

It passes every queue that others' messages pass (the server's, the socket's, the event loop's).
"""

from __future__ import annotations

import asyncio
import logging
import os

from fallow.core.admission import Overload
from fallow.model.ids import new_id
from fallow.wire import subjects
from fallow.wire.connection import Connection
from fallow.wire.messages import Echo, Msg

log = logging.getLogger(__name__)

EVERY_S = 1.0
SELDOM_S = 5.0
"""While so few messages come (FEW in a second) that nothing can pile up."""
FEW = 200
LOST_S = 30.0
"""A word that has not come back by then was lost, and is said again."""


class LoadWatch:
    """`tick` it while there is work; `overload` says what follows."""

    def __init__(self, connection: Connection) -> None:
        self.overload = Overload()
        self._connection = connection
        self._subject = subjects.echo(new_id("echo", os.urandom))
        self._seq = 0
        self._said_s = -LOST_S
        self._waits = False
        self._heard_before = 0
        self._looked_s = -LOST_S

    async def start(self) -> None:
        await self._connection.subscribe(self._subject, self._heard)
        self._connection.on_reconnect.append(self._anew)

    def tick(self, now: float) -> None:
        """`now`: monotonic seconds."""
        if self._waits:
            if now - self._said_s > self.overload.behind_s:
                self._note(now - self._said_s)
            if now - self._said_s < LOST_S:
                return
        heard, passed_s = self._connection.reads, now - self._looked_s
        is_calm = heard - self._heard_before < FEW * passed_s and not self.overload.sheds
        self._heard_before, self._looked_s = heard, now
        if now - self._said_s >= (SELDOM_S if is_calm else EVERY_S):
            self._seq += 1
            self._said_s, self._waits = now, True
            self._connection.send(self._subject, Echo(self._seq))

    def _heard(self, message: Msg, reply: str) -> None:
        if isinstance(message, Echo) and message.seq == self._seq and self._waits:
            self._waits = False
            self._note(asyncio.get_running_loop().time() - self._said_s)

    def _anew(self) -> None:
        """What was said before is lost with the old connection, and says nothing of this one."""
        self._waits = False
        self._note(0.0)

    def _note(self, behind_s: float) -> None:
        shed = self.overload.sheds
        self.overload.note(behind_s)
        if self.overload.sheds and not shed:
            log.warning("%s", self.overload.refusal())
        elif shed and not self.overload.sheds:
            log.warning("it has caught up, and takes new work again")
