"""`fallow join`: what it says where the machine cannot be lent, or its pool is away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool import Pool, client_env, running_pool

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="agents need POSIX")]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with running_pool(tmp_path_factory.mktemp("join") / "home", "--no-agent") as made:
        yield made


@pytest.mark.parametrize(
    ("sandbox", "words"),
    [
        ('least = "machine"', "Strangers' code runs here in the tier 'machine' or above; bubblewrap gives 'isolated'"),
        ('backend = "process"', "the tier 'isolated' or above; process gives 'process'"),
        ('backend = "gvisor"', "There is no sandbox 'gvisor'"),
    ],
)
def test_strangers_are_refused_without_a_sandbox(pool: Pool, tmp_path: Path, sandbox: str, words: str) -> None:
    (tmp_path / "agent").mkdir(mode=0o700)
    (tmp_path / "agent" / "node.toml").write_text(f"[sandbox]\n{sandbox}\n")
    done = subprocess.run(
        [sys.executable, "-m", "fallow.cli.main", "join", pool.url, "--strangers"],
        env=client_env(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 1
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "works for the pool" not in done.stdout
    assert pool.json("nodes") == []
