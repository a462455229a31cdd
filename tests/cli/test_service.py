"""The services that `fallow service install` writes: right for their managers, and without a secret."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest

from fallow.cli.join_address import address_from
from fallow.cli.main import main
from fallow.cli.service_manager import Wanted, service_state, unit_path, wanted_service
from fallow.cli.service_units import Service, launchd_plist, systemd_unit, windows_task

SERVICE = Service(
    ("/bin/sh", "join", "--from", "/srv/a user/.fallow/agent/pool-address", "--name", "100% $HOME"),
    "/srv/a user/.fallow",
    "/srv/a user/.fallow/agent/service.log",
)


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    text = systemd_unit(SERVICE)
    assert 'ExecStart=/bin/sh join --from "/srv/a user/.fallow/agent/pool-address" --name "100%% $$HOME"' in text
    assert 'Environment="FALLOW_HOME=/srv/a user/.fallow"' in text
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here: the unit was only looked at as text")
    path = tmp_path / "fallow-node.service"
    path.write_text(text)
    done = subprocess.run([analyze, "verify", "--user", str(path)], capture_output=True, text=True, timeout=60)
    assert str(path.name) not in done.stderr, done.stderr


def test_the_plist_is_one_for_launchd() -> None:
    data = plistlib.loads(launchd_plist(SERVICE))
    assert data["ProgramArguments"] == list(SERVICE.command)
    assert data["RunAtLoad"]
    assert data["KeepAlive"]


def test_the_task_of_windows() -> None:
    words = windows_task("Ubuntu")
    assert words[:2] == ("schtasks.exe", "/Create")
    assert "systemctl --user start fallow-node.service" in words[-1]


def test_no_secret_is_in_what_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FALLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(SystemExit) as ended:
        main(["service", "install", "--show", "verysecret@127.0.0.1:4222", "--name", "desk"])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "verysecret" not in shown
    assert "--from" in shown
    assert "--name desk" in shown
    assert not unit_path().exists(), "it was only shown"
    assert service_state()["installed"] is False
    assert "verysecret" not in str(wanted_service(Wanted("verysecret@127.0.0.1:4222")))


def test_without_a_manager_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FALLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["service", "install", "token@127.0.0.1:4222"])
    assert "no systemd here" in capsys.readouterr().err
    assert not (tmp_path / "home" / "agent" / "pool-address").exists()
    with pytest.raises(SystemExit):
        main(["service", "install"])
    assert "which pool?" in capsys.readouterr().err


def test_an_address_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FALLOW_URL", "secret@127.0.0.1:4222")
    assert address_from("other@127.0.0.1:4222", "") == "other@127.0.0.1:4222"
    assert address_from("", "") == "secret@127.0.0.1:4222"
    assert "FALLOW_URL" not in os.environ, "what is started here need not know"
    file = tmp_path / "pool"
    file.write_text("secret@127.0.0.1:4222\n")
    file.chmod(0o644)
    assert address_from("", str(file)) == "secret@127.0.0.1:4222"
    assert "others can read the pool's token" in capsys.readouterr().err
    file.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))  # the mode of what systemd hands in
    assert address_from("", str(file)) == "secret@127.0.0.1:4222"
    assert capsys.readouterr().err == ""


def test_what_up_is_given_may_stand_in_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their values are taken, and are gone from what children get."""
    from typer.testing import CliRunner

    from fallow.cli.main import app

    monkeypatch.setenv("FALLOW_HOME", str(tmp_path))
    monkeypatch.setenv("FALLOW_UP_NATS", "secret@127.0.0.1:4222")
    monkeypatch.setenv("FALLOW_UP_STORE", "sqlite:///x")
    refused = CliRunner().invoke(app, ["up", "--coordinator-only", "--blobs", "/tmp/x"])
    assert "SQLite holds a pool of one coordinator" in str(refused.exception)
    assert not {"FALLOW_UP_NATS", "FALLOW_UP_STORE"} & set(os.environ)
