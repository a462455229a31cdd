"""What a build in a sandbox has left is taken only where it is plain files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes need Linux", allow_module_level=True)

from fallow.agent import taken_tree
from fallow.agent.taken_tree import take_over
from fallow.model.errors import EnvironmentFailed


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "secret").write_text("canary")
    source, target = tmp_path / "built", tmp_path / "skeleton"
    (source / "lib").mkdir(parents=True)
    target.mkdir()
    return source, target


def test_plain_files_are_moved_and_become_the_agents(folders: tuple[Path, Path]) -> None:
    source, target = folders
    (source / "lib" / "module.py").write_text("x = 1")
    (source / "lib" / "program").write_text("#!")
    (source / "lib" / "program").chmod(0o6777)
    (source / "shut").mkdir(mode=0o000)
    take_over(source, target)
    assert (target / "lib" / "module.py").read_text() == "x = 1"
    assert (target / "lib" / "program").stat().st_mode & 0o7777 == 0o755
    assert (target / "shut").stat().st_mode & 0o7777 == 0o755


def test_what_was_there_stays_and_its_links_are_not_followed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    (source / "python").write_text("hostile")
    (source / "lib64").mkdir()
    (source / "lib64" / "secret").write_text("hostile")
    (source / "python3").symlink_to(tmp_path / "secret")
    (target / "python").symlink_to(sys.executable)
    (target / "python3").symlink_to("python")
    (target / "lib64").symlink_to(tmp_path)
    take_over(source, target)
    assert os.readlink(target / "python") == sys.executable
    assert os.readlink(target / "python3") == "python"
    assert (tmp_path / "secret").read_text() == "canary"


@pytest.mark.parametrize("kind", ["symbolic", "hard", "fifo", "to a folder"])
def test_links_and_others_are_refused(kind: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    path = source / "lib" / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "hard":
        os.link(tmp_path / "secret", path)
    else:
        path.symlink_to(tmp_path if kind == "to a folder" else tmp_path / "secret")
    with pytest.raises(EnvironmentFailed, match=r"'lib/thing' is (a link|no file)"):
        take_over(source, target)
    assert not (target / "lib" / "thing").exists()
    assert (tmp_path / "secret").stat().st_mode & 0o7777 == 0o644


def test_number_and_depth_are_bounded(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = folders
    deep = source.joinpath(*["d"] * (taken_tree.DEPTH_LIMIT + 2))
    deep.mkdir(parents=True)
    with pytest.raises(EnvironmentFailed, match="deep"):
        take_over(source, target)
    monkeypatch.setattr(taken_tree, "FILES_LIMIT", 3)
    (source / "d").rename(source.parent / "d")
    for number in range(4):
        (source / f"f{number}").write_text("")
    with pytest.raises(EnvironmentFailed, match="more than 3 files"):
        take_over(source, target)
