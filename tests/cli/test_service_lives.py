"""`fallow service` with a live systemd of a user: installed, asked about, killed and back, removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.pool import client_env, lend_always, running_pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")]

SYSTEMD = "/lib/systemd/systemd"
UNIT = "fallow-node.service"
# A manager of its own, which believes that the machine was started by systemd, and nobody else sees it.
START = f"""
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/user/manager && chmod 700 /run/user/manager || exit 1
exec {SYSTEMD} --user
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def beside_systemd(tmp_path: Path) -> Iterator[Run]:
    """Runs commands where a user's systemd answers, with a FALLOW_HOME of their own."""
    needed = ("unshare", "nsenter", "systemctl")
    if missing := [name for name in needed if shutil.which(name) is None] or not Path(SYSTEMD).exists():
        pytest.skip(f"no systemd to be tried here (missing: {missing})")
    env = client_env(tmp_path / "node", XDG_RUNTIME_DIR="/run/user/manager", XDG_CONFIG_HOME=str(tmp_path / "config"))
    said = tmp_path / "systemd.txt"
    with said.open("wb") as out:
        manager = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", START], env=env, stdout=out, stderr=out
        )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--mount=/proc/{manager.pid}/ns/mnt", "--", *words]
        return subprocess.run(inside, env=env, capture_output=True, text=True, timeout=90)

    def answers() -> bool:
        if manager.poll() is not None:
            pytest.skip(f"no systemd of a user can live here: {said.read_text(errors='replace')[-300:].strip() or '?'}")
        return run("systemctl", "--user", "is-system-running").stdout.strip() in ("running", "degraded")

    wait_for("systemd", answers)
    try:
        yield run
    finally:
        run("systemctl", "--user", "kill", "--signal=KILL", UNIT)
        manager.terminate()
        manager.wait(60)


def test_a_service_is_installed_comes_back_and_goes(beside_systemd: Run, tmp_path: Path) -> None:
    lend_always(tmp_path / "node")

    def fallow(*words: str) -> str:
        done = beside_systemd(sys.executable, "-m", "fallow.cli.main", "service", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def main_pid() -> int:
        return int(beside_systemd("systemctl", "--user", "show", "--property=MainPID", "--value", UNIT).stdout)

    with running_pool(tmp_path / "home", "--no-agent") as pool:

        def works(pid: int) -> bool:
            return any(n["state"] == "alive" and n["spec"]["pid"] == pid for n in pool.json("nodes")) and pid > 0

        said = fallow("install", pool.url, "--own-pool", "--slots", "1", "--name", "served")
        assert "It runs." in said
        assert "loginctl enable-linger" in said, "nobody lingers in this test"
        first = main_pid()
        wait_for("the node", lambda: works(first))
        said = fallow("status")
        assert f"{UNIT}: active, enabled." in said
        assert "It runs while you are logged in" in said
        token = pool.url.partition("@")[0]
        assert token not in (tmp_path / "config" / "systemd" / "user" / UNIT).read_text()
        assert token not in " ".join(psutil.Process(first).cmdline())

        # As the unit has it, but for the wait of the test.
        quick = tmp_path / "config" / "systemd" / "user" / f"{UNIT}.d" / "quick.conf"
        quick.parent.mkdir()
        quick.write_text("[Service]\nRestartSec=100ms\n")
        assert beside_systemd("systemctl", "--user", "daemon-reload").returncode == 0
        children = psutil.Process(first).children(recursive=True)
        os.kill(first, signal.SIGKILL)
        wait_for("the end of its workers", lambda: not any(child.is_running() for child in children))
        wait_for("the next one", lambda: main_pid() not in (0, first) and works(main_pid()))
        second = main_pid()

        assert "Removed" in fallow("uninstall")
        wait_for("its leave", lambda: not psutil.pid_exists(second))
        wait_for("its goodbye", lambda: [node["state"] for node in pool.json("nodes", "--all")][-1] == "left")
        assert "No service is installed." in fallow("status")
        assert not (tmp_path / "node" / "agent" / "pool-address").exists()
        assert "No service was installed." in fallow("uninstall")
