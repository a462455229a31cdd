"""The run that gates merges: a short one with a fixed seed. Nothing may be lost, doubled or left behind."""

from __future__ import annotations

import pytest

from tests.chaos.run import Options, run
from tests.engines.postgres import programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(programs() is None, reason="no PostgreSQL is installed"),
]


def test_nothing_is_lost_while_things_go_wrong() -> None:
    report = run(Options(seed=7, seconds=25.0, every_s=1.5, kinds=("calls", "short", "large", "failing", "detached")))
    print("\n".join(report.lines()))
    assert report.wrong == []
    assert report.leases > 0
    assert len(report.happened) >= 1
    assert any(noted.what == "call" for noted in report.noted)
