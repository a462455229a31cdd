"""Machines as they are: a disk that fills up, a driver that is broken, nobody's display. Real agents in a real pool."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.devices.drivers import Driver, build_library
from tests.pool import DEADLINE_S, Pool, lend_always, running_pool, wait_for
from tests.small_disk import small_disk_at

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's own ways"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with running_pool(tmp_path_factory.mktemp("hard") / "home", "--no-agent") as pool:
        yield pool


def state_of(pool: Pool, name: str) -> str:
    return next((str(node["state"]) for node in pool.json("nodes") if node["spec"]["name"] == name), "")


def paused_of(pool: Pool, name: str) -> str:
    return next((str(node["paused"]) for node in pool.json("nodes") if node["spec"]["name"] == name), "")


def end(pool: Pool, name: str) -> None:
    """The node leaves, so that the next test has the pool for itself."""
    pool.joined[-1].terminate()
    pool.joined[-1].wait(60)
    wait_for("its leave", lambda: state_of(pool, name) not in ("alive", "draining"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB."""
    with small_disk_at(tmp_path / "disk", 12) as folder:
        yield folder


FILLS = """
    import os
    import fallow

    app = fallow.App("fills")

    @app.function(retries=0)
    def large(megabytes):
        return os.urandom(megabytes << 20)

    @app.function
    def small(x):
        return x + 1

    if __name__ == "__main__":
        try:
            print(len(large.remote(40)))
        except Exception as error:
            print(type(error).__name__, error)
        print([len(found) >> 20 for found in large.map([2] * 4)])
        print(sum(small.map(range(1000))))
"""


SMALL = FILLS.partition("    if __name__")[0] + "    print(small.remote(1))"


def test_a_disk_that_fills_while_a_result_is_written_costs_that_task_alone(pool: Pool, small_disk: Path) -> None:
    pool.join("full", 1, small_disk)
    wait_for("the node", lambda: state_of(pool, "full") == "alive")
    done = pool.script(FILLS)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third = done.stdout.splitlines()
    assert "No space left" in first, "in words, and where to look"
    assert second == str([2] * 4), "what was written in vain has left its room"
    assert third == str(sum(range(1, 1001)))
    assert state_of(pool, "full") == "alive"
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
    assert not left, "what was written in vain is gone"
    end(pool, "full")


def run_past_a_full_disk(pool: Pool, text: str, tmp_path: Path) -> tuple[str, str]:
    """What a script says and complains of, that first fills the node 'full' and then finds a roomy one."""
    script = pool.start_script(text)
    try:
        wait_for("its words", lambda: "is full" in paused_of(pool, "full"))
        pool.join("roomy", 1, tmp_path / "roomy")
        said, complained = script.communicate(timeout=2 * DEADLINE_S)
    finally:
        script.kill()
        script.wait()
    return said, complained


def test_a_task_that_one_disk_has_no_room_for_runs_on_another_node(
    pool: Pool, small_disk: Path, tmp_path: Path
) -> None:
    pool.join("full", 1, small_disk)
    wait_for("the node", lambda: state_of(pool, "full") == "alive")
    said, complained = run_past_a_full_disk(pool, FILLS, tmp_path)
    assert said.splitlines() == [str(40 << 20), str([2] * 4), str(sum(range(1, 1001)))], complained
    wait_for("room or another try", lambda: not paused_of(pool, "full"))
    pool.joined[-2].terminate()
    pool.joined[-2].wait(60)
    end(pool, "roomy")


COMBINES = (
    FILLS.partition("    if __name__")[0]
    + """
    def longest(a, b):
        return max(a, b, key=len)

    if __name__ == "__main__":
        try:
            print(len(large.map([40] * 4, reduce=longest)) >> 20)
        except Exception as error:
            print(type(error).__name__, error)
"""
)


def test_combined_results_that_one_disk_has_no_room_for_are_made_on_another_node(
    pool: Pool, small_disk: Path, tmp_path: Path
) -> None:
    pool.join("full", 1, small_disk)
    wait_for("the node", lambda: state_of(pool, "full") == "alive")
    said, complained = run_past_a_full_disk(pool, COMBINES, tmp_path)
    assert said.split() == ["40"], said + complained
    pool.joined[-2].terminate()
    pool.joined[-2].wait(60)
    end(pool, "roomy")


def test_a_broken_driver_is_told_and_the_machine_works_without(
    pool: Pool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = build_library("fake_nvml.c", tmp_path_factory.mktemp("nvml"), "libnvidia-ml.so.1")
    Driver(tmp_path / "driver").say([], init=9)
    variables = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(tmp_path / "driver")}
    home = tmp_path / "node"
    pool.join("broken", 1, home, **variables)
    wait_for("the node", lambda: state_of(pool, "broken") == "alive")
    assert pool.script(SMALL).stdout.strip() == "2"
    said = pool.cli("node", "status", "--home", str(home)).stdout
    assert "gpu       the NVIDIA driver does not answer" in said
    shown = pool.cli("join", pool.url, "--dry-run", "--own-pool", "--home", str(home), env=variables)
    assert "  GPU       the NVIDIA driver does not answer" in shown.stdout, shown.stderr
    end(pool, "broken")


def test_a_machine_without_display_and_people_lends_itself(pool: Pool, tmp_path: Path) -> None:
    if list(Path("/dev/input").glob("event*")) or list(Path("/tmp/.X11-unix").glob("X*")):
        pytest.skip("this machine has input devices or a display: it is no server")
    home = tmp_path / "node"
    lend_always(home)
    settings = home / "agent" / "node.toml"
    settings.write_text(settings.read_text().replace("watch = false", "watch = true"))
    nothing = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS"), "")
    pool.join("server", 1, home, **nothing)
    wait_for("the node", lambda: state_of(pool, "server") == "alive")

    def lends() -> bool:
        [status] = json.loads(pool.cli("node", "status", "--json", "--home", str(home)).stdout or "[{}]")
        return status.get("state") == "idle" and any("nobody sits here" in note for note in status["watch"]["notes"])

    wait_for("it to lend itself", lends)
    assert "nobody sits here: " in pool.cli("node", "status", "--home", str(home)).stdout
    assert pool.script(SMALL).stdout.strip() == "2"
    end(pool, "server")
