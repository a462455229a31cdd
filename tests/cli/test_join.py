"""`fallow join`: what it says where the machine cannot be lent, or its pool is away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.cli.join import is_ours
from fallow.wire.address import parse_address
from tests.pool import Pool, client_env, running_pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="agents need POSIX")]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with running_pool(tmp_path_factory.mktemp("join") / "home", "--no-agent") as made:
        yield made


@pytest.mark.parametrize(
    ("sandbox", "words"),
    [
        (
            'backend = "bubblewrap"\nleast = "machine"',
            "Strangers' code runs here in the tier 'machine' or above; bubblewrap gives 'isolated'",
        ),
        ('backend = "process"', "the tier 'isolated' or above; process gives 'process'"),
        ('backend = "firejail"', "sandbox.backend is 'firejail'; expected one of"),
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


def test_whose_pool_it_is_is_seen_by_its_server_and_not_by_its_address(pool: Pool) -> None:
    """A tunnel to somebody else's pool ends at this machine too."""
    assert is_ours(parse_address(pool.url))
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        assert not is_ours(parse_address(f"secret@127.0.0.1:{tunnel.getsockname()[1]}"))
    assert not is_ours(parse_address("secret@192.0.2.1:7461"))


def test_a_pool_that_is_away_is_spoken_of_and_found_when_it_comes(tmp_path: Path) -> None:
    with running_pool(tmp_path / "home", "--no-agent") as pool:
        url = pool.url
        pool.join("early", 1, tmp_path / "early", "--own-pool")
        said = tmp_path / "early.txt"
        wait_for("the node", lambda: any(node["state"] == "alive" for node in pool.json("nodes")))
        wait_for("its word", lambda: "with 1 slot. Ctrl-C ends it." in said.read_text())
        assert "with no slots so far." in said.read_text()
        coordinator = pool.child("coordinator")
        coordinator.send_signal(signal.SIGSTOP)
        try:
            wait_for("word of its absence", lambda: "the pool does not answer" in said.read_text())
        finally:
            coordinator.send_signal(signal.SIGCONT)
        wait_for("word of its return", lambda: "the pool answers again" in said.read_text())
    gone = tmp_path / "gone.txt"
    with open(gone, "wb") as out:
        late = subprocess.Popen(
            [sys.executable, "-m", "fallow.cli.main", "join", url, "--own-pool"],
            env=client_env(tmp_path / "late"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        wait_for("a first word", lambda: "No answer yet" in gone.read_text())
        wait_for("the reason", lambda: "Is `fallow up` running there" in gone.read_text())
    finally:
        late.kill()
        late.wait()


def test_in_a_terminal_each_thing_is_told_as_soon_as_it_is_known(pool: Pool, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    joining = subprocess.Popen(
        [sys.executable, "-m", "fallow.cli.main", "join", pool.url, "--name", "seen", "--slots", "1", "--dedicated"],
        env={**client_env(tmp_path), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = ""

    def heard(words: str) -> bool:
        nonlocal said
        with contextlib.suppress(OSError):
            said += os.read(ours, 1 << 16).decode().replace("\r", "")
        return words in said

    try:
        wait_for("the benchmark", lambda: heard("  benchmark "))
        wait_for("the node", lambda: heard("'seen' works for the pool"))
    finally:
        joining.send_signal(signal.SIGINT)
        joining.wait(60)
    wait_for("the end", lambda: heard("'seen' has left the pool"))
    os.close(ours)
    told = [said.index(f"\n  {what} ") for what in ("CPU", "memory", "disk", "GPU", "when", "sandbox")]
    assert told == sorted(told)
    assert max(told) < min(said.index("'seen' works for"), said.index("\n  network ")), said
