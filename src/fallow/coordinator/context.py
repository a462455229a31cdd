"""What the parts of a coordinator share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fallow.coordinator.blob_refs import BlobRefs
from fallow.coordinator.disk_room import DiskRoom
from fallow.coordinator.journal import Journal
from fallow.coordinator.load import LoadWatch
from fallow.coordinator.nodes import NodeRegistry
from fallow.coordinator.questions import Questions
from fallow.coordinator.session import Session
from fallow.model.ids import NodeId
from fallow.model.job import AccountLimits
from fallow.store.protocol import Store
from fallow.wire.connection import Connection
from fallow.wire.messages import Msg


def _nothing() -> None:
    return None


@dataclass
class Context:
    """One coordinator's engines and neighbours."""

    connection: Connection
    store: Store
    journal: Journal
    nodes: NodeRegistry
    session: Session
    blobs: BlobRefs
    owner: str
    loop: asyncio.AbstractEventLoop
    reader: ThreadPoolExecutor
    """For what the coordinator itself needs from the store; clients' questions go through `questions`."""
    questions: Questions
    load: LoadWatch
    limits: Mapping[str, AccountLimits] = field(default_factory=dict)
    """By account."""
    room: DiskRoom = field(default_factory=DiskRoom)
    """On the disk of the blobs."""
    is_there: Callable[[str], bool] | None = None
    """Where there is one coordinator: BlobStore.is_there."""
    kick_matcher: Callable[[], None] = field(default=_nothing)
    node_names: dict[NodeId, str] = field(default_factory=dict)
    """Names of nodes that worked for jobs owned here."""
    tasks_done_here: dict[NodeId, int] = field(default_factory=dict)
    """Tasks done by node since the last report to the leader."""
    wasted_here_s: dict[NodeId, float] = field(default_factory=dict)
    """Run time that nodes lost to their owners' return since then."""
    draining: bool = False

    def refusal(self) -> tuple[str, str] | None:
        """(kind, words) while new work is to be refused."""
        if words := self.load.overload.refusal():
            return "overloaded", words
        return self.journal.refusal

    def say(self, subject: str, message: Msg) -> None:
        """Speak for a job that is owned here, unless another may own it by now: silence is then the only right
        answer, and everyone asks again."""
        if self.session.valid:
            self.connection.send(subject, message)

    def node_name(self, node_id: NodeId) -> str:
        """Its id where no name is known. A short job ends before its owner has heard from the node by name."""
        if (name := self.node_names.get(node_id)) is not None:
            return name
        entry = self.nodes.entries.get(node_id)
        return entry.spec.name if entry is not None else node_id

    def now(self) -> float:
        """Monotonic seconds."""
        return self.loop.time()

    def unix_s(self) -> float:
        return time.time()
