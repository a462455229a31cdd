"""Output of tasks: few messages, a bounded rate, and a word about what was dropped."""

from __future__ import annotations

import asyncio

from fallow.agent import logs
from fallow.agent.logs import LogSender
from fallow.agent.worker_api import OutputLine
from fallow.model.ids import JobId
from fallow.wire.messages import Msg, NodeLog

JOB = JobId("job-aaaaaa")


def collect() -> tuple[LogSender, list[NodeLog]]:
    sent: list[NodeLog] = []

    def send(subject: str, message: Msg) -> None:
        assert subject == "fw.log.job-aaaaaa"
        assert isinstance(message, NodeLog)
        sent.append(message)

    return LogSender("node", send), sent


async def test_lines_are_gathered_into_one_message() -> None:
    sender, sent = collect()
    for index in range(10):
        sender.add(JOB, [OutputLine(index, "stdout", f"line {index}")])
    assert sent == []
    for _ in range(1000):
        if sent:
            break
        await asyncio.sleep(0.01)
    [message] = sent
    assert [line.text for line in message.lines] == [f"line {index}" for index in range(10)]
    assert {line.node for line in message.lines} == {"node"}


async def test_a_flood_is_cut_and_says_so() -> None:
    sender, sent = collect()
    text = "x" * 1000
    for _ in range(20):
        sender.add(JOB, [OutputLine(0, "stdout", text)] * 1000)
    sender.flush()
    size = sum(len(line.text) for message in sent for line in message.lines)
    assert size <= logs.BURST_BYTES
    assert max(sum(len(line.text) for line in message.lines) for message in sent) <= logs.MESSAGE_BYTES + len(text)
    job = sender._jobs[JOB]
    job._filled_s -= 10.0
    sender.add(JOB, [OutputLine(1, "stdout", "later")])
    sender.forget_job(JOB)
    words = [line.text for line in sent[-1].lines]
    assert words[0] == "later"
    assert "lines were dropped" in words[1]
