"""Which coordinators and nodes there are, and an operator's orders to take them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fallow.coordinator.context import Context
from fallow.coordinator.directory import Directory
from fallow.coordinator.peers import Peers, name_of
from fallow.wire import subjects
from fallow.wire.messages import (
    CoordinatorInfo,
    Coordinators,
    Done,
    DrainCoordinator,
    ListNodes,
    Msg,
    NodeControl,
    Nodes,
    Refused,
)


class Roster:
    """Answers for all coordinators; `leave` is called once this one is told to."""

    def __init__(self, context: Context, directory: Directory, peers: Peers) -> None:
        self._context = context
        self._directory = directory
        self._peers = peers
        self.leave: Callable[[], None] = lambda: None
        self._asking: asyncio.Task[None] | None = None

    def list(self) -> Coordinators:
        """This one first."""
        own = self._context.owner
        jobs = sum(1 for owned in self._directory.active.values() if not owned.progress.is_final)
        this = CoordinatorInfo(own, name_of(own), jobs, self._context.session.leads, 0.0)
        return Coordinators((this, *self._peers.infos()))

    def drain(self, message: DrainCoordinator, reply: str) -> None:
        """A client asks: do it, pass it on, or say why not."""
        context = self._context
        matching = [info for info in self.list().coordinators if message.name in (info.owner, info.name)]
        if len(matching) != 1:
            known = ", ".join(info.owner if matching else info.name for info in matching or self.list().coordinators)
            words = f"{len(matching)} coordinators are called" if matching else "there is no coordinator called"
            self._answer(reply, Refused("not_found", f"{words} {message.name!r}. Known are: {known}."))
        elif matching[0].owner != context.owner:
            context.connection.send(subjects.OWNERS, DrainCoordinator(matching[0].owner), reply)
        elif not self._peers.count:
            self._asking = context.loop.create_task(self._drain_unless_alone(message.name, reply))
        else:
            self._answer(reply, Done())
            self.leave()

    async def _drain_unless_alone(self, name: str, reply: str) -> None:
        """One that has just started may not have heard of the others yet: the store knows their sessions."""
        if await self._context.session.others():
            self._answer(reply, Done())
            self.leave()
            return
        words = (
            f"{name!r} is the pool's only coordinator: nobody could take its jobs. Start another one first, or end it "
            "with Ctrl-C or SIGTERM; its jobs are kept in the store."
        )
        self._answer(reply, Refused("invalid", words))

    def passed_on(self, message: DrainCoordinator, reply: str) -> None:
        """From another coordinator, to all."""
        if message.name == self._context.owner:
            self.drain(message, reply)

    def lead(self, message: Msg, reply: str) -> None:
        """A request about nodes, to the coordinator that leads."""
        nodes = self._context.nodes
        match message:
            case ListNodes():
                self._answer(reply, Nodes(nodes.infos(self._context.now())))
            case NodeControl() if message.order not in ("drain", "resume"):
                words = f"{message.order!r} is no order for a node: drain or resume"
                self._answer(reply, Refused("invalid", words))
            case NodeControl() if nodes.drain(message.node_id, message.order == "drain"):
                self._context.kick_matcher()
                self._answer(reply, Done())
            case NodeControl():
                self._answer(reply, Refused("not_found", f"there is no node {message.node_id}"))
            case _:
                pass

    def _answer(self, reply: str, message: Msg) -> None:
        if reply:
            self._context.connection.send(reply, message)
