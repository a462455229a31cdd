"""Ends the attached jobs of scripts that were killed, sooner than those of scripts that are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fallow.coordinator.context import Context
from fallow.coordinator.owned_job import OwnedJob
from fallow.core.client_presence import CLOSED_WITHIN_S, ClientPresence
from fallow.model.ids import ClientId
from fallow.wire import subjects
from fallow.wire.connection import NobodyListens
from fallow.wire.messages import Echo

LOOK_S = 0.9
ANSWER_S = 1.5
ASKED_AT_ONCE = 100
"""Clients that are asked in one look; of more, the others are waited for as long as a silent client is."""


class ClientWatch:
    """`look` in every tick. Where several message servers serve the pool it does nothing: a broken way between two
    of them looks like a client that has gone."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._clients: dict[ClientId, ClientPresence] = {}
        self._look_s = 0.0
        self._asking: set[asyncio.Task[None]] = set()

    def look(self, jobs: Iterable[OwnedJob], now: float) -> None:
        """`jobs`: all that are owned here."""
        if now < self._look_s or self._context.connection.is_clustered:
            return
        self._look_s = now + LOOK_S
        attached = [job for job in jobs if not job.spec.detached and not job.progress.is_final]
        known, self._clients = self._clients, {}
        for job in attached:
            client_id = job.spec.client_id
            presence = known.get(client_id) or ClientPresence(job.client_seen)
            known[client_id] = self._clients[client_id] = presence
            presence.heard(job.client_seen)
        for job in attached:
            if self._clients[job.spec.client_id].is_gone(now):
                job.perform(job.progress.cancel("its script ended without a word", "client_silent"))
        due = (item for item in self._clients.items() if len(self._asking) < ASKED_AT_ONCE)
        for client_id, presence in due:
            if presence.is_to_be_asked(now):
                task = self._context.loop.create_task(self._ask(client_id, presence))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask(self, client_id: ClientId, presence: ClientPresence) -> None:
        connection = self._context.connection
        try:
            await connection.request(subjects.client(client_id), Echo(0), ANSWER_S)
        except NobodyListens:
            presence.nobody_listens(self._context.now(), connection.has_listened(CLOSED_WITHIN_S))
        except TimeoutError:
            if connection.is_connected:
                presence.listens()
        else:
            presence.heard(self._context.now())
