"""gVisor: what its runner is told, what is refused in words, and what is known of programs that the host cannot see."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.choose import choose
from fallow.sandbox.container_root import container_root
from fallow.sandbox.gvisor import GvisorSandbox, with_kernel
from fallow.sandbox.gvisor_bundle import PLATFORMS, container, known_options, known_platforms, runsc_options
from fallow.sandbox.identity import Identity
from fallow.sandbox.protocol import Limits, Mount, OwnKernel, Program
from fallow.sandbox.tree import descendants

from .boxes import WITHIN_S, Box, processes_marked
from .conftest import working

OF_2022 = """\
  -file-access-mounts value
    \tspecifies which filesystem validation to use for volumes: shared (default), exclusive. (default shared)
  -host-uds value
    \tcontrols permission to access host Unix-domain sockets. Values: none|open|create|all, default: none
  -overlay2 value
    \twrap mounts with overlayfs.
  -platform string
    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")
  -platform_device_path string
    \tpath to a platform-specific device file (e.g. /dev/kvm for KVM platform).
"""
OF_2024 = OF_2022.replace("ptrace (default), kvm", "systrap (default), ptrace, kvm") + "  -directfs\n    \taccess.\n"
OLDEST = '  -platform string\n    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")\n'


def _program(**fields: object) -> Program:
    return Program(argv=("/usr/bin/true",), environment={}, cwd="/tmp", **fields)  # type: ignore[arg-type]


def test_only_options_that_a_version_has_are_given() -> None:
    assert known_platforms(OF_2022) == ("ptrace", "kvm")
    assert known_platforms(OF_2024) == ("systrap", "ptrace", "kvm"), "in the order of trial"
    assert known_platforms("") == known_platforms("  -platform string") == ()
    always = ["--root=/state", "--platform=ptrace", "--network=none", "--ignore-cgroups"]
    assert runsc_options(known_options(OLDEST), "ptrace", "/state") == always
    given = runsc_options(known_options(OF_2022), "ptrace", "/state")
    assert given[:4] == always
    assert {"--overlay2=none", "--host-uds=none", "--file-access-mounts=shared"} == set(given[4:])
    assert "--directfs=false" in runsc_options(known_options(OF_2024), "systrap", "/state")


def test_the_container_has_no_capability_and_writes_nothing_but_its_folder(tmp_path: Path) -> None:
    program = _program(mounts=(Mount(str(tmp_path), "/scratch", writable=True), Mount("/usr/share", "/data")))
    root = container_root(program, "sandbox")
    try:
        made: dict = container(root, root.folder, Identity(2_000_000_001, 2_000_000_002, True))  # type: ignore[type-arg]
    finally:
        root.remove()
    assert made["root"] == {"path": root.folder, "readonly": True}
    assert made["process"]["user"] == {"uid": 2_000_000_001, "gid": 2_000_000_002}
    assert made["process"]["noNewPrivileges"]
    assert set(made["process"]["capabilities"]) >= {"bounding", "effective", "permitted", "inheritable", "ambient"}
    assert not any(made["process"]["capabilities"].values())
    binds = {mount["destination"]: mount for mount in made["mounts"] if mount["type"] == "bind"}
    assert binds["/scratch"]["source"] == str(tmp_path)
    assert [target for target, mount in binds.items() if "rw" in mount["options"]] == ["/scratch"]
    assert all("ro" in mount["options"] for target, mount in binds.items() if target != "/scratch")
    sizes = {
        mount["destination"]: [option for option in mount["options"] if option.startswith("size=")]
        for mount in made["mounts"]
        if mount["type"] == "tmpfs"
    }
    assert sizes == {"/tmp": [f"size={root.tmp_bytes}"], "/dev/shm": [f"size={root.shm_bytes}"]}
    assert {space["type"] for space in made["linux"]["namespaces"]} >= {"pid", "network", "ipc", "mount"}


def test_what_gvisor_itself_needs_comes_on_top_of_limits_and_no_limit_stays_none() -> None:
    assert with_kernel(Limits(memory_bytes=0, processes=0)) == Limits(memory_bytes=0, processes=0)
    more = with_kernel(Limits(memory_bytes=1 << 30, processes=10, cpu_share=0.5))
    assert (1 << 30) < more.memory_bytes < (1 << 30) + (256 << 20)
    assert more.processes >= 20
    assert more.cpu_share == 0.5


@pytest.mark.parametrize("fields", [{"network": True}, {"devices": ("/dev/nvidia0",)}])
def test_network_and_devices_are_refused_in_words(fields: dict[str, object]) -> None:
    with pytest.raises(SandboxUnavailable, match="gVisor gives no") as caught:
        GvisorSandbox().start(_program(**fields))
    assert "bubblewrap" in caught.value.remedy


def _script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "runsc"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 1", "no platform"),
        (f"cat <<'END'\n{OLDEST.replace(', kvm', '')}END\necho 'no ptrace for you' >&2; exit 1", "no ptrace for you"),
    ],
)
def test_a_runsc_that_does_not_work_is_refused_with_its_own_words(tmp_path: Path, text: str, words: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("gVisor is used by root")
    probe = GvisorSandbox(runsc=_script(tmp_path, text)).probe()
    assert not probe.works
    assert probe.tier == Tier.PROCESS
    assert words in probe.words
    assert "bubblewrap" in probe.remedy


def test_a_runsc_that_is_not_there_and_a_plain_user_are_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    probe = GvisorSandbox(runsc=str(tmp_path / "none")).probe()
    assert not probe.works
    assert "apt install runsc" in probe.remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    probe = GvisorSandbox().probe()
    assert "root" in probe.words
    assert "bubblewrap" in probe.remedy


def test_a_platform_that_does_not_work_gives_way_to_the_next(tmp_path: Path) -> None:
    kept = working("gvisor")
    assert isinstance(kept, GvisorSandbox)
    real = shutil.which("runsc", path="/usr/local/bin:/usr/bin")
    assert real
    first = next(name for name in PLATFORMS if name != kept.platform)
    listed = f"which platform to use: {first}, {kept.platform}"
    # What must come first in the order of trial fails; the other is the real one.
    sandbox = GvisorSandbox(
        runsc=_script(
            tmp_path,
            f'case "$*" in\nflags) {real} flags 2>&1 | sed "s/which platform to use: .*/{listed}/";;\n'
            f'*--platform={first}*) echo broken >&2; exit 1;;\n*) exec {real} "$@";;\nesac\n',
        )
    )
    assert sandbox.probe().works, sandbox.probe().words
    assert sandbox.platform == kept.platform


def test_the_least_tier_chooses_it_and_a_higher_one_is_refused() -> None:
    kept = working("gvisor")
    assert kept.probe().tier == Tier.KERNEL
    assert {layer.name for layer in kept.probe().layers if layer.works} >= {"kernel", "user", "network"}
    chosen = choose(SandboxSettings(least=Tier.KERNEL), own_pool=False)
    assert chosen.name == "gvisor"
    if BubblewrapSandbox().probe().works:
        assert choose(SandboxSettings(), own_pool=False).name == "bubblewrap"
    with pytest.raises(SandboxUnavailable, match="'machine' or above"):
        choose(SandboxSettings(least=Tier.MACHINE), own_pool=False)


@pytest.mark.slow
def test_memory_of_a_program_that_the_host_cannot_see_is_told(tmp_path: Path) -> None:
    box = Box(working("gvisor"), tmp_path)
    running = box.start(
        "held = b'x' * (90 << 20); open('new', 'w').write(str(os.getpid()))\nos.rename('new', 'pid')\ntime.sleep(600)"
    )
    try:
        assert isinstance(running, OwnKernel)
        pid = tmp_path / "scratch" / "pid"
        deadline = time.monotonic() + WITHIN_S
        while not pid.exists() or running.private_bytes(int(pid.read_text())) < 90 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert running.private_bytes(int(pid.read_text())) < 200 << 20
        assert running.private_bytes(4_000_000) == 0
        assert running.host_pid(4_000_000) == running.pid
    finally:
        running.close()
    assert running.host_pid(2) == 0


@pytest.mark.slow
def test_nothing_of_gvisor_is_left_when_a_program_has_ended(tmp_path: Path) -> None:
    box = Box(working("gvisor"), tmp_path)
    running = box.start("say('ready'); time.sleep(600)")
    init = running.init_pid  # type: ignore[attr-defined]
    all_of_it = [init, *descendants(init)]
    assert len(all_of_it) > 2
    state = Path(f"/proc/{init}/cmdline").read_bytes().split(b"--root=")[1].split(b"\0")[0].decode()
    assert stat.S_ISDIR(os.stat(state).st_mode)
    running.close()
    assert not [pid for pid in all_of_it if os.path.exists(f"/proc/{pid}/exe")], "a zombie has none"
    assert processes_marked(state) == []
    assert not os.path.exists(os.path.dirname(state))


@pytest.mark.slow
def test_why_all_of_it_ended_is_told(tmp_path: Path) -> None:
    box = Box(working("gvisor"), tmp_path)
    if GvisorSandbox().place() is None:
        pytest.skip("no control group can be made here: what ends it is the bound of its address space")
    held = "held = [bytearray(os.urandom(1 << 20) * 16) for _ in range(64)]"
    running = box.start(held, Limits(memory_bytes=64 << 20, processes=16))
    try:
        assert running.wait(WITHIN_S) != 0
        assert isinstance(running, OwnKernel)
        assert "all the memory" in running.why
    finally:
        running.close()
