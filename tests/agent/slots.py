"""Leases, reports and effects of a slot, made briefly."""

from __future__ import annotations

from typing import TypeVar

from fallow.agent.slot_effects import Effect
from fallow.agent.worker_api import Report
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, JobKind, JobSpec
from fallow.model.parts import ResultPage
from fallow.wire.messages import Lease

E = TypeVar("E", bound=Effect)
NODE = NodeId("0123456789abcdef")


def spec(job: str = "job-aaaaaa") -> JobSpec:
    return JobSpec(JobId(job), "f", JobKind.MAP, ClientId("client-aaaaaa"), Blob(Digest("d"), 1, b"f"))


def lease(number: int, start: int, stop: int, pull_seq: int = 1, job: str = "job-aaaaaa", alone: bool = False) -> Lease:
    return Lease(JobId(job), 1, (1, number), 0, pull_seq, start, stop, 2.0, (), alone)


def page(start: int, stop: int, data: bytes = b"r") -> ResultPage:
    return ResultPage(start, stop, start, Blob(Digest("d"), len(data), data))


def done(number: int, start: int, stop: int, ended: bool = True) -> Report:
    return Report((1, number), (page(start, stop),), ended=ended, run_s=0.5)


def of(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]
