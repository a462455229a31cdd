"""node.toml: every key, every mistake in words, and changes that keep what people wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fallow.agent.settings import change_settings, default_text, find_key, load_settings, parse_settings, write_defaults
from fallow.core.setting_keys import KEYS
from fallow.model.errors import SettingError
from fallow.model.lending import Hours, LendingSettings

FILE = Path("node.toml")


def test_every_field_has_a_key() -> None:
    for section in LendingSettings.__struct_fields__:
        fields = set(getattr(LendingSettings(), section).__struct_fields__)
        assert fields == {key.field for key in KEYS if key.section == section}


def test_the_file_of_the_first_join_says_the_defaults() -> None:
    assert parse_settings(default_text(), FILE) == LendingSettings()
    lines = [
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in default_text().split("\n")
    ]
    assert parse_settings("\n".join(lines), FILE) == LendingSettings()


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "node.toml") == LendingSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[owner]\nidle = 3", "line 2: owner.idle is 3; expected a time with its unit"),
        ('# hello\n[owner]\nidel = "3 min"', "line 3: .owner. has no key 'idel'. Did you mean 'idle'?"),
        ('[ownr]\nidle = "3 min"', "line 1: there is no section 'ownr'. Did you mean 'owner'?"),
        ('[share]\nidle = "3 min"', "It belongs under .owner."),
        ('[share]\ndisk = "20 XB"', "'xb' is no such unit"),
        ("[share]\ndisk = 20000000000", "share.disk is 20000000000"),
        ('[owner]\nhours = ["mon"]', "days and times such as"),
        ('[owner]\nhours = "mon 10:00-12:00"', "expected a list"),
        ("[owner\n", "cannot be read"),
        ("owner = 3", "is a section: write"),
        ('[owner]\ngrace = "3 s"', "at most 1.5 s"),
        ('[owner]\nbusy_cpu = "10 %"', "resume_cpu is above owner.busy_cpu"),
        ('[heat]\ncpu_limit = "70 C"', "resume_below is not below"),
        ('[sandbox]\nleast = "none"', "'process', 'isolated', 'kernel', 'machine'"),
        ("[price]\nlimit_per_kwh = 0.3", "needs price.source"),
        ('[owner]\nwatch = "yes"', "expected true or false"),
        ("[share]\nslots = -1", "0 or more"),
        ("[share]\nslots = true", "whole number"),
        ('[gpu]\nmodels = "A100"', "list of names"),
    ],
)
def test_mistakes_are_told_in_words(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_settings(text, FILE)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xff\xfe[owner]")
    with pytest.raises(SettingError, match="no text in UTF-8"):
        load_settings(path)
    path.write_bytes(b"#" * 300_000)
    with pytest.raises(SettingError, match="larger than"):
        load_settings(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingError, match="cannot be read"):
        load_settings(path)


def test_changes_keep_comments_and_are_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    assert write_defaults(path)
    assert not write_defaults(path)
    path.write_text(path.read_text().replace("[share]", "[share]\n# my own words\nmemory = '4 GB'  # half"))
    settings = change_settings(
        path, ["share.memory=8 GB", "idle=5 min", "hours=mon-fri 18:00-08:00, sat,sun 00:00-24:00"]
    )
    assert settings.share.memory_bytes == 8 * 10**9
    assert settings.owner.idle_s == 300
    assert settings.owner.hours == (Hours((0, 1, 2, 3, 4), 1080, 480), Hours((5, 6), 0, 1440))
    text = path.read_text()
    assert "# my own words" in text
    assert "# half" in text
    assert load_settings(path) == settings
    with pytest.raises(SettingError, match=r"share\.up=fast"):
        change_settings(path, ["gpu.lend=no", "share.up=fast"])
    assert load_settings(path).gpu.lend, "nothing of it was taken in"
    assert change_settings(path, ["share.memory="]).share.memory_bytes == 0
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_key_that_was_meant() -> None:
    assert find_key("power_limit").path == "gpu.power_limit"
    with pytest.raises(SettingError, match=r"Did you mean 'share\.memory'"):
        find_key("share.memry")
