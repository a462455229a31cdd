"""`fallow node top` in terminals of several sizes: why it does not work and what it does are seen in each."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from textual_plotext import PlotextPlot

from fallow.agent.control import Status
from fallow.cli.node_client import ask_agents
from fallow.cli.node_screen import PLOT_ROWS, NodeScreen
from tests.pool import Pool, wait_for

pytestmark = pytest.mark.slow


def node_top(pool: Pool) -> tuple[int, subprocess.Popen[bytes]]:
    """Our end of a terminal of 80 by 24, and what runs in it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [sys.executable, "-m", "fallow.cli.main", "node", "top"]
    top = subprocess.Popen(words, env=pool.env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    return ours, top


def read_until(ours: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        seen += os.read(ours, 65536)
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_it_ends_with_its_terminal(pool: Pool) -> None:
    """As below `su`, where no signal tells of that."""
    wait_for("the node", lambda: pool.cli("node", "status").returncode == 0)
    ours, top = node_top(pool)
    with top:
        try:
            read_until(ours, b"state")
            os.close(ours)
            assert top.wait(60) != 0
        finally:
            top.kill()


@pytest.mark.parametrize(("size", "plots"), [((80, 24), 2), ((200, 60), 4)])
async def test_state_and_plots_have_room(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], plots: int
) -> None:
    monkeypatch.setenv("FALLOW_HOME", str(pool.home))
    wait_for("the node", lambda: pool.cli("node", "status").returncode == 0)
    screen = NodeScreen(3600.0, 1, ask_agents(Status(), 1)[0].body)
    async with screen.run_test(size=size) as pilot:
        await screen.look()  # rates need two looks
        await pilot.pause()
        shown = [plot for plot in screen.query(PlotextPlot) if plot.display]
        assert len(shown) == plots
        assert all(plot.region.height >= PLOT_ROWS for plot in shown)
        assert all(plot.region.bottom <= size[1] for plot in shown)
        state = screen.query_one("#state")
        assert state.region.y == 0
        assert "state     ready" in str(state.render())
        jobs = screen.query_one("#jobs")
        assert jobs.region.height >= 1
        assert jobs.region.bottom <= size[1] - 1


STRANGE = """
    import sys, time
    import fallow

    app = fallow.App("strange")

    def wait(folder):
        import pathlib, time
        while not pathlib.Path(folder, "go").exists():
            time.sleep(0.02)

    wait.__name__ = "crunch[/b]\\x1b]0;mine\\x07" + "z" * 200
    print(app.function()(wait).remote(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_it_begins_while_work_of_any_name_runs(pool: Pool, tmp_path: Path) -> None:
    """A name is a stranger's: it neither ends the screen nor steers the terminal."""
    script = pool.start_script(STRANGE, str(tmp_path))
    try:
        wait_for("the work", lambda: "crunch[/b]" in pool.cli("node", "status").stdout)
        said = pool.cli("node", "status").stdout
        assert "\x1b" not in said
        assert "\x07" not in said
        assert max(map(len, said.splitlines())) < 160
        ours, top = node_top(pool)
        with top:
            try:
                seen = read_until(ours, b"crunch[/b]")
                os.write(ours, b"q")
                while True:
                    try:
                        if not (more := os.read(ours, 65536)):
                            break
                    except OSError:  # its end is closed
                        break
                    seen += more
                assert top.wait(60) == 0
            finally:
                top.kill()
                os.close(ours)
        assert b"]0;mine\x07" not in seen
        assert b"\x1b]0;mine" not in seen
    finally:
        (tmp_path / "go").touch()
        script.communicate(timeout=60)


async def test_an_agent_that_has_ended_is_not_shown_as_if_it_ran(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLOW_HOME", str(pool.home))
    wait_for("the node", lambda: pool.cli("node", "status").returncode == 0)
    screen = NodeScreen(3600.0, 1, ask_agents(Status(), 1)[0].body)
    async with screen.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        monkeypatch.setenv("FALLOW_HOME", str(pool.home / "nobody"))
        await screen.look()
        await pilot.pause()
        shown = str(screen.query_one("#state").render())
        assert "not known now" in shown
        assert "state     ready" not in shown
        monkeypatch.setenv("FALLOW_HOME", str(pool.home))
        await screen.look()
        await pilot.pause()
        assert "state     ready" in str(screen.query_one("#state").render())
