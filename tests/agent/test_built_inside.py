"""Environments of strangers: built in a real sandbox by the real uv, from an index on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes need Linux", allow_module_level=True)

from fallow.agent.caches import Caches, tree_bytes
from fallow.agent.confined import Confinement
from fallow.agent.environments import WORKER_REQUIREMENTS, Environments
from fallow.agent.limits.disk import Disk
from fallow.model.errors import EnvironmentFailed
from fallow.model.job import EnvSpec
from fallow.sandbox.protocol import Limits
from tests.sandbox.boxes import processes_marked
from tests.sandbox.conftest import working

from .local_index import serve_index, write_sdist, write_wheel

LIMITS = Limits(memory_bytes=1 << 30, disk_bytes=200 << 20)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an index that the machine's owner has set, with what workers need."""
    folder = tmp_path / "index"
    folder.mkdir()
    for line in (*WORKER_REQUIREMENTS, "typing-extensions"):
        write_wheel(folder, line.partition(">")[0])
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    with serve_index(folder) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        yield folder


EVERY = pytest.mark.parametrize("name", ["bubblewrap", "podman", "gvisor"])


def environments(tmp_path: Path, name: str = "bubblewrap") -> Environments:
    sandbox = working(name)
    made = Environments(tmp_path / "environments", lambda: {})
    made.confinement = Confinement(sandbox, LIMITS, build_bytes=200 << 20)
    return made


def run(python: str, code: str) -> str:
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


_HOSTILE = """
import socket, subprocess
def attempt(name, action):
    try:
        loot[name] = repr(action())
    except BaseException as error:
        pass
for path in {readable!r}:
    attempt('read ' + path, lambda: open(path).read() if not os.path.isdir(path) else os.listdir(path))
for path in {writable!r}:
    attempt('write ' + path, lambda: open(path, 'w').write('owned'))
for address in ('127.0.0.1', '::1', {lan!r}):
    def talk():
        with socket.create_connection((address, {port}), 3) as direct:
            direct.sendall(b'direct')
    attempt('connect ' + address, talk)
    def around():
        with socket.create_connection(('127.0.0.1', 1080), 3) as gate:
            gate.sendall(bytes((5, 1, 0))); gate.recv(2)
            name = address.encode()
            gate.sendall(bytes((5, 1, 0, 3, len(name))) + name + ({port}).to_bytes(2, 'big'))
            assert gate.recv(10)[1] == 0
            gate.sendall(b'around')
    attempt('gate ' + address, around)
loot['root'] = os.getuid() == 0
for number in range(30):
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 100)
        os.execv(sys.executable, ['python', '-I', '-S', '-c', 'import time; time.sleep(600)', {mark!r}])
"""


@EVERY
@pytest.mark.slow
async def test_a_hostile_build_reaches_nothing_of_the_machine(tmp_path: Path, index: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary-of-the-owner")
    heard: list[bytes] = []
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:

        def hear() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(100))

        threading.Thread(target=hear, daemon=True).start()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 10) as own:
            own.sendall(b"own")
        root = tmp_path / "environments"
        targets = [str(tmp_path / "owned"), str(root / "owned"), "/usr/owned", "/etc/owned", f"{sys.prefix}/owned"]
        code = _HOSTILE.format(
            readable=[str(secret), "/root", "/home", "/etc/shadow", "/proc/1/environ", str(root), sys.prefix],
            writable=targets,
            lan=_own_address(),
            port=port,
            mark=mark,
        )
        write_sdist(index, "hostile", "1.0", code)
        try:
            python = await environments(tmp_path, name).ensure(EnvSpec(requirements=("hostile",), allow_sdist=True))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    loot = json.loads(run(python, "import hostile, json; print(json.dumps(hostile.loot))"))
    # Its own process 1 is bwrap or the launcher, with an empty environment. Folders may be seen that lead to the
    # interpreter, and hold nothing else.
    way = next((part for part in Path(sys.base_prefix).parts[2:3] if sys.base_prefix.startswith("/root/")), "")
    ours = {"read /proc/1/environ", *(name for name in loot if loot[name] == repr([way]))}
    assert {name: value for name, value in loot.items() if name not in ours} == {"root": False}
    # (gVisor gives every program a home that is nobody's.)
    assert loot.get("read /proc/1/environ", "''") in ("''", repr("HOME=/\0"))
    assert heard == [b"own"]
    assert processes_marked(mark) == []
    assert [path for path in targets if os.path.exists(path)] == []
    assert secret.read_text() == "canary-of-the-owner"
    assert os.listdir(root) == [Path(python).parent.parent.name], "nothing half is left"
    modes = {path.lstat().st_mode & 0o7022 for path in root.rglob("*") if not path.is_symlink()}
    assert modes <= {0}
    owners = {path.lstat().st_uid for path in root.rglob("*")}
    assert owners == {os.geteuid()}


def _own_address() -> str:
    """Of this machine in its network; its loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
            return str(asking.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@EVERY
@pytest.mark.slow
async def test_what_is_built_works_and_is_compiled(tmp_path: Path, index: Path, name: str) -> None:
    write_wheel(index, "iniconfig")
    python = await environments(tmp_path, name).ensure(EnvSpec(requirements=("iniconfig",)))
    code = "import iniconfig, msgspec, blake3, cloudpickle, fallow; print(iniconfig.__file__, iniconfig.__cached__)"
    file, cached = run(python, code).split()
    assert file.startswith(str(tmp_path / "environments"))
    assert Path(cached).exists(), "who uses it may not write what it compiles"


_FLOOD = """
number = 0
while True:
    number += 1
    with open(f'f{number}', 'wb') as file:
        file.write(b'x' * (4 << 20))
"""


@EVERY
@pytest.mark.slow
async def test_a_build_that_writes_without_end_is_ended_within_what_is_lent(
    tmp_path: Path, index: Path, name: str
) -> None:
    """Beside what is kept and in use: all of it counts as one."""
    write_sdist(index, "flood", "1.0", _FLOOD)
    made = environments(tmp_path, name)
    assert made.confinement is not None
    kept = tmp_path / "environments" / ("a" * 32) / "lib"
    kept.mkdir(parents=True)
    (kept / "big").write_bytes(b"x" * (60 << 20))
    writers = made.confinement.writers
    caches = Caches(tmp_path, lambda: [str(kept)], lambda: writers.unseen_bytes)
    disk = Disk(tmp_path, caches, reserve_bytes=0, writers=writers)
    lent, most = 160 << 20, [0]
    writers.room = lambda wanted: disk.room(wanted, lent)

    async def look() -> None:
        while True:
            most[0] = max(most[0], await asyncio.to_thread(tree_bytes, tmp_path / "environments"))
            await asyncio.sleep(0.02)

    looking = asyncio.ensure_future(look())
    try:
        with pytest.raises(EnvironmentFailed, match=r"it wrote \d+ MB of the 7\d MB of disk that it may use"):
            await made.ensure(EnvSpec(requirements=("flood",), allow_sdist=True))
    finally:
        looking.cancel()
    assert most[0] < lent + (400 << 20), "on a machine that is busy it is found out late, but not that late"
    assert [found.name for found in (tmp_path / "environments").iterdir()] == ["a" * 32]
    assert not writers
    (kept / "more").write_bytes(b"x" * (90 << 20))
    with pytest.raises(EnvironmentFailed, match="no environment can be built on this node now: of the disk that"):
        await environments_again(made, tmp_path, lent).ensure(EnvSpec(requirements=("flood",), allow_sdist=True))


def environments_again(made: Environments, folder: Path, lent: int) -> Environments:
    """The same, with caches that have measured nothing yet."""
    assert made.confinement is not None
    disk = Disk(folder, Caches(folder, lambda: [str(folder / "environments" / ("a" * 32))]), reserve_bytes=0)
    made.confinement.writers.room = lambda wanted: disk.room(wanted, lent)
    return made


@pytest.mark.slow
async def test_where_it_cannot_be_done_wheels_are_installed_and_nothing_is_built(
    tmp_path: Path, index: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, "iniconfig")
    write_sdist(index, "any", "1.0", "")
    monkeypatch.setenv("UV_DEFAULT_INDEX", os.environ["UV_DEFAULT_INDEX"].replace("//", "//me:secret@"))
    made = environments(tmp_path)
    python = await made.ensure(EnvSpec(requirements=("iniconfig",)))
    assert run(python, "import iniconfig; print(iniconfig.__name__)") == "iniconfig\n"
    assert "needs a password, which strangers' code could read" in caplog.text
    with pytest.raises(EnvironmentFailed, match=r"builds no source distributions: .*needs a password"):
        await made.ensure(EnvSpec(requirements=("any",), allow_sdist=True))


async def test_lines_that_name_more_than_a_package_are_refused(tmp_path: Path) -> None:
    made = environments(tmp_path)
    for line in ("../secret", "x @ file:///etc/passwd", "x @ http://10.0.0.1/x.whl", "-r /etc/passwd"):
        with pytest.raises(EnvironmentFailed, match="by name and version only"):
            await made.ensure(EnvSpec(requirements=(line,), allow_sdist=True))
