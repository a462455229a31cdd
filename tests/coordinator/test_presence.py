"""How the registry of nodes tells and believes intervals of beats."""

from __future__ import annotations

from typing import Any

from fallow.coordinator.nodes import NodeRegistry
from fallow.model.ids import JobId, NodeId
from fallow.model.node import NodeSpec
from fallow.wire.messages import Beat, BeatAck


class Sent:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, subject: str, message: Any, reply: str = "") -> None:
        self.messages.append(message)


def _beat(number: int, seq: int, interval_s: float = 1.0, first: bool = False) -> Beat:
    node_id = NodeId(f"{number:016x}")
    spec = NodeSpec(node_id, f"n{number}", 1, 1, 1 << 30, 1 << 30, "linux", ("3.11",), "0.1") if first else None
    return Beat(node_id, "s", seq, (), 0, spec=spec, interval_s=interval_s)


def test_a_silent_node_gets_nothing_new_until_it_is_heard_of() -> None:
    registry = NodeRegistry(Sent())  # type: ignore[arg-type]
    registry.lead(1)
    node = _beat(1, 1).node_id
    registry.beat(_beat(1, 1, first=True), 100.0, 0.0)
    registry.beat(_beat(2, 1, interval_s=10.0, first=True), 100.0, 0.0)
    assert not registry.note_quiet(102.0)
    registry.changed.clear()
    assert registry.note_quiet(102.5)
    assert list(registry.changed) == [node], "the other one was to beat every ten seconds"
    view = registry.view(node)
    assert view is not None
    assert not view.open
    assert not registry.note_quiet(102.6), "that is known"
    _entry, changed = registry.beat(_beat(1, 2), 103.0, 0.0)
    view = registry.view(node)
    assert changed
    assert view is not None
    assert view.open


def test_a_node_at_rest_that_does_not_answer_to_work_gets_no_more_of_it() -> None:
    registry = NodeRegistry(Sent())  # type: ignore[arg-type]
    registry.lead(1)
    registry.place_elsewhere = lambda _: True
    for number in (1, 2):
        registry.beat(_beat(number, 1, interval_s=10.0, first=True), 100.0, 0.0)
    answers, silent = _beat(1, 1).node_id, _beat(2, 1).node_id
    for node in (answers, silent):
        registry.send_assign((node, 0), JobId("job-1"), 101.0)
    registry.beat(_beat(1, 2), 101.1, 0.0)
    registry.changed.clear()
    assert not registry.note_quiet(102.4)
    assert registry.note_quiet(102.6)
    assert list(registry.changed) == [silent], "it was to beat by 110, and may be late; but not once it has work"
    registry.beat(_beat(2, 2), 103.4, 0.0)
    view = registry.view(silent)
    assert view is not None
    assert view.open


def test_a_node_that_died_at_rest_is_not_waited_for_twice() -> None:
    registry = NodeRegistry(Sent())  # type: ignore[arg-type]
    registry.lead(1)
    registry.beat(_beat(1, 1, interval_s=10.0, first=True), 100.0, 0.0)
    assert not registry.note_quiet(112.0)
    assert registry.note_quiet(112.3)
    assert registry.silent(115.9) == []
    (entry,) = registry.silent(116.2)
    assert entry.reason == "silent for 16 s"


def test_a_node_at_rest_hears_at_once_that_it_is_to_be_drained() -> None:
    sent = Sent()
    registry = NodeRegistry(sent)  # type: ignore[arg-type]
    registry.lead(1)
    registry.beat(_beat(1, 1, interval_s=10.0, first=True), 100.0, 0.0)
    sent.messages.clear()
    assert registry.drain(_beat(1, 1).node_id, True)
    (ack,) = sent.messages
    assert isinstance(ack, BeatAck)
    assert ack.drain


def test_nodes_are_asked_to_beat_less_often_as_they_become_more_and_are_believed() -> None:
    sent = Sent()
    registry = NodeRegistry(sent)  # type: ignore[arg-type]
    registry.lead(1)
    for number in range(10_000):
        registry.beat(_beat(number, 1, first=True), 100.0, 0.0)
    acks = [message for message in sent.messages if isinstance(message, BeatAck)]
    assert acks[0].interval_s == 1.0
    assert 9.0 < acks[-1].interval_s <= 10.0
    for number in range(2_000):
        registry.beat(_beat(number, 2, interval_s=10.0), 101.0, 0.0)
    lost = {entry.spec.node_id for entry in registry.silent(108.0)}
    assert lost == {NodeId(f"{number:016x}") for number in range(2_000, 10_000)}, "those that were to beat every second"
    assert len(registry.silent(162.0)) == 2_000
    sent.messages.clear()
    registry.beat(_beat(0, 3, interval_s=10.0), 163.0, 0.0)
    assert sent.messages[0].interval_s == 1.0, "nodes that are gone do not count"
