"""Unpacking the customer's own modules: complete, once, and never outside of the folder."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from fallow.agent.modules import prune_modules, safe_member, unpack_modules
from fallow.model.errors import EnvironmentFailed
from fallow.model.ids import Digest

DIGEST = Digest("ab" * 32)


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, text in files.items():
            opened.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def test_files_and_folders_are_unpacked_once(tmp_path: Path) -> None:
    data = archive(**{"helper.py": "x = 1", "pack__inner.py": "y = 2"})
    folder = unpack_modules(DIGEST, data, tmp_path)
    assert (folder / "helper.py").read_text() == "x = 1"
    assert (folder / "pack" / "inner.py").read_text() == "y = 2"
    (folder / "mark").write_text("still here")
    assert unpack_modules(DIGEST, b"not looked at", tmp_path) == folder
    assert (folder / "mark").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [DIGEST]


def test_an_archive_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "modules.zip"
    path.write_bytes(archive(**{"helper.py": "x = 1"}))
    assert (unpack_modules(DIGEST, path, tmp_path / "root") / "helper.py").exists()


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a/../../out.py", "a\\b.py", "c:/x.py"])
def test_members_outside_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("fine.py", "")
        opened.writestr(name, "")
    with pytest.raises(EnvironmentFailed):
        unpack_modules(DIGEST, buffer.getvalue(), tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert safe_member(name) is None


def test_links_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        opened.writestr(entry, "/etc/passwd")
    with pytest.raises(EnvironmentFailed, match="link"):
        unpack_modules(DIGEST, buffer.getvalue(), tmp_path)


def test_a_damaged_archive_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot be unpacked"):
        unpack_modules(DIGEST, b"no zip at all", tmp_path)


def test_too_much_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.agent.modules.UNPACKED_LIMIT_BYTES", 10)
    with pytest.raises(EnvironmentFailed, match=r"fallow\.put"):
        unpack_modules(DIGEST, archive(**{"big.py": "x" * 11}), tmp_path)


def test_old_folders_and_halves_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.agent.modules.KEPT_LIMIT", 2)
    for number in range(4):
        folder = unpack_modules(Digest(f"{number:064x}"), archive(**{"x.py": ""}), tmp_path)
        os.utime(folder, (number, number))
    (tmp_path / ".unpacking-ab-1").mkdir()
    prune_modules(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f"{2:064x}", f"{3:064x}"]
    prune_modules(tmp_path / "nowhere")
