"""What every sandbox does, whichever backend it is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.protocol import Mount, Program

from .boxes import WITHIN_S, Box, processes_marked


def _wait_until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.002)


def _wait_for(path: Path) -> None:
    _wait_until(str(path), path.exists)


def _groups_of(pid: int) -> list[Path]:
    found = []
    for path in Path("/sys/fs/cgroup").glob("*/**/fallow-*/cgroup.procs"):
        with contextlib.suppress(OSError):
            if str(pid) in path.read_text().split():
                found.append(path.parent)
    return found


def test_runs_where_it_should_with_only_its_environment(box: Box) -> None:
    done = box.run("say(os.getcwd()); print('printed', sorted(os.environ)); sys.exit(3)")
    assert done.status == 3
    assert done.out.strip() == str(done.scratch)
    assert "'PATH'" in done.log
    assert "HOME" not in done.log


def test_descriptors_keep_their_numbers_and_carry_sockets(box: Box) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        running = box.start(
            f"s = socket.socket(fileno={theirs.fileno()}); s.sendall(s.recv(100).upper()); s.recv(1)",
            descriptors=(theirs.fileno(),),
        )
        theirs.close()
        ours.settimeout(WITHIN_S)
        ours.sendall(b"ping")
        assert ours.recv(100) == b"PING"
        running.close()
        assert ours.recv(1) == b"", "the socket is still held by something"


def test_signals_reach_the_program_itself(box: Box) -> None:
    running = box.start(
        "signal.signal(signal.SIGTERM, lambda *_: (say('asked'), os._exit(5)))\n"
        "say('ready')\nwhile True: time.sleep(60)"
    )
    _wait_for(box.folder / "scratch" / "out")
    running.signal(signal.SIGTERM)
    assert running.wait(WITHIN_S) == 5
    running.signal(signal.SIGTERM)
    running.close()
    assert "asked" in (box.folder / "scratch" / "out").read_text()


def test_kill_ends_what_ignores_being_asked(box: Box) -> None:
    running = box.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('ready')\nwhile True: time.sleep(60)")
    _wait_for(box.folder / "scratch" / "out")
    running.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.05)
    running.kill()
    assert running.wait(WITHIN_S) == -signal.SIGKILL
    running.close()


def test_pids_inside_are_translated(box: Box) -> None:
    running = box.start(
        "child = subprocess.Popen(['/bin/sleep', '600'])\n"
        "open('new', 'w').write(f'{os.getpid()} {child.pid}'); os.rename('new', 'pids'); time.sleep(600)"
    )
    try:
        _wait_for(box.folder / "scratch" / "pids")
        own, child = (int(word) for word in (box.folder / "scratch" / "pids").read_text().split())
        if box.sandbox.name == "gvisor":
            pytest.skip("gVisor's processes are not the host's: its kernel is one process")
        assert running.host_pid(own) == running.pid
        words = Path(f"/proc/{running.host_pid(child)}/cmdline")  # empty for a moment while the child starts
        _wait_until("the child", lambda: b"sleep" in words.read_bytes())
        assert running.host_pid(4_000_000) == 0
    finally:
        running.close()


def test_mounts_are_read_only_unless_said(box: Box) -> None:
    if box.sandbox.name == "process":
        pytest.skip("a plain process sees the host as it is")
    shown = box.folder / "shown"
    shown.mkdir()
    (shown / "file").write_text("seen")
    shown.chmod(0o777)
    mounts = (Mount(str(box.folder / "scratch"), writable=True), Mount(str(shown), "/data"))
    done = box.run(
        "say(open('/data/file').read())\n"
        "try: open('/data/mine', 'w')\nexcept OSError as error: say(type(error).__name__)\n",
        mounts=mounts,
    )
    assert done.out.split()[0] == "seen", done.log
    assert len(done.out.split()) == 2
    assert os.listdir(shown) == ["file"]


def test_temporary_files_may_be_written(jail: Box) -> None:
    done = jail.run("for place in ('/tmp', '/dev/shm'): open(place + '/file', 'w').write('x'); say(place)")
    assert done.out.split() == ["/tmp", "/dev/shm"], done.log


def test_many_threads_and_children_work(box: Box) -> None:
    done = box.run(
        "import threading\nsum_ = []\n"
        "ts = [threading.Thread(target=lambda: sum_.append(1)) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "say(str(len(sum_)) + subprocess.check_output(['/bin/echo', 'hi'], text=True).strip())"
    )
    assert done.out.strip() == "8hi", done.log


def test_nothing_is_left_behind(box: Box) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    if box.sandbox.name == "process":
        pytest.skip("a plain process can slip away")
    running = box.start(
        f"if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
        f"  os.execv(sys.executable, ['python', '-I', '-S', '-c', 'import time; time.sleep(600)', '{mark}'])\n"
        " os._exit(0)\n"
        "say('ready'); time.sleep(600)"
    )
    _wait_for(box.folder / "scratch" / "out")
    groups = _groups_of(running.pid)
    running.close()
    assert processes_marked(mark) == []
    assert not [group for group in groups if group.exists()]
    assert running.poll() is not None
    running.close()


def test_a_program_that_is_not_there_is_refused_in_words(box: Box) -> None:
    program = box.program("")
    with pytest.raises(SandboxUnavailable, match="/not/there"):
        box.sandbox.start(Program(argv=("/not/there",), environment={}, cwd=program.cwd, mounts=program.mounts))


def test_many_starts_leave_no_descriptor_open(box: Box) -> None:
    box.run("pass")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        box.run("pass")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_start_leaves_the_agents_threads_in_their_control_group(bubble: Box) -> None:
    place = bubble.sandbox.place()  # type: ignore[attr-defined]
    if place is None:
        pytest.skip("no control group can be made here")
    before = Path("/proc/self/cgroup").read_text()
    running = bubble.start("say('ready'); time.sleep(600)")
    try:
        _wait_for(bubble.folder / "scratch" / "out")
        threads = {path.read_text() for path in Path("/proc/self/task").glob("*/cgroup")}
        inside = Path(f"/proc/{running.pid}/cgroup").read_text()
    finally:
        running.close()
    assert threads == {before}
    assert "memory:" not in before or "/fallow-" in next(line for line in inside.splitlines() if ":memory:" in line)
