"""Whether a node could ever run a job, as far as sandboxes and networks go, and the words where it could not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fallow.core.fit import misfit, too_large
from fallow.model.ids import ClientId, Digest, JobId, NodeId
from fallow.model.job import Blob, EnvSpec, JobKind, JobSpec, Resources
from fallow.model.node import NodeSpec
from fallow.model.tiers import Tier

OWN = NodeSpec(NodeId("0" * 16), "desk", 2, 2, 1 << 34, 1 << 38, "linux-x86_64", ("3.11",), "1")
LENT = msgspec.structs.replace(OWN, name="lent", tier=int(Tier.ISOLATED), least_tier=int(Tier.ISOLATED), network=False)


def job(**fields: Any) -> JobSpec:
    blob = Blob(Digest("cd" * 32), 3, b"fun")
    return JobSpec(JobId("job-aaaaaa"), "square", JobKind.MAP, ClientId("client-aaaaaa"), blob, **fields)


@pytest.mark.parametrize(
    ("fields", "node", "words"),
    [
        ({}, OWN, None),
        ({"least_tier": 1}, LENT, None),
        ({"least_tier": 1}, OWN, "needs a sandbox of the tier 'isolated', and desk gives 'process'"),
        ({"least_tier": 2}, LENT, "needs a sandbox of the tier 'kernel', and lent gives 'isolated'"),
        ({"least_tier": 9}, LENT, "needs a sandbox of the tier '9', and lent gives 'isolated'"),
        ({}, LENT, "asks for no sandbox, and lent is lent by a stranger and runs nothing without one: "
                   "sandbox='isolated' lets it run there"),
        ({"network": True}, OWN, None),
        ({"network": True, "least_tier": 1}, LENT, "needs the network inside its sandbox, and lent does not lend it"),
        ({"network": True, "least_tier": 1}, msgspec.structs.replace(LENT, network=True), None),
        # An own machine inside a sandbox takes jobs that ask for none: whoever owns both may do so.
        ({}, msgspec.structs.replace(LENT, least_tier=0), None),
    ],
)  # fmt: skip
def test_tiers_and_networks_fit_or_it_is_said(fields: dict[str, Any], node: NodeSpec, words: str | None) -> None:
    assert misfit(job(**fields), node) == words


def test_a_job_that_no_node_can_run_is_told_why_for_each() -> None:
    asked = job(least_tier=int(Tier.MACHINE))
    said = too_large(asked, [OWN, LENT]) or ""
    assert said.startswith("no node of this pool can run 'square': it needs a sandbox of the tier 'machine'")
    assert "desk gives 'process'" in said
    assert "lent gives 'isolated'" in said
    assert too_large(job(least_tier=1), [OWN, LENT]) is None
    assert too_large(asked, []) is None, "nodes may still come"


def test_a_node_that_still_looks_for_pythons_may_have_the_one_that_is_needed() -> None:
    needs = job(env=EnvSpec(python="3.12"))
    seeking = msgspec.structs.replace(OWN, seeks_pythons=True)
    assert misfit(needs, seeking) == "needs Python 3.12, and desk has 3.11"
    assert too_large(needs, [OWN, seeking]) is None
    assert "needs Python 3.12" in (too_large(needs, [OWN]) or "")
    huge = msgspec.structs.replace(needs, resources=Resources(cpu=99))
    assert "99 CPUs" not in (too_large(needs, [seeking]) or "")
    assert too_large(huge, [seeking]) is not None, "no Python would help"


def test_sizes_are_written_as_people_do() -> None:
    huge = job(resources=Resources(memory_bytes=10_000 * 10**12))
    assert "needs 10,000 TB of memory" in (misfit(huge, OWN) or "")
