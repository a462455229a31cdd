"""What `fallow up` decides before it starts anything."""

import errno
import re
import socket
import stat
from pathlib import Path

import pytest

from fallow.cli.nats_server import find_server, free_port, port_is_free, server_config, server_threads
from fallow.cli.supervisor import FIRST_DELAY_S, MAX_DELAY_S, restart_delay_s
from fallow.cli.up import HomeLock, advertised_host, bracketed, choose_port, is_loopback, pool_token, split_listen
from fallow.core.presence import REST_INTERVAL_S
from fallow.model.errors import SettingError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("", "127.0.0.1", 0),
        ("0.0.0.0", "0.0.0.0", 0),
        ("0.0.0.0:7000", "0.0.0.0", 7000),
        ("[::]:7000", "[::]", 7000),
        ("::1", "::1", 0),
        ("lab.example:80", "lab.example", 80),
    ],
)
def test_listen(text: str, host: str, port: int) -> None:
    assert split_listen(text) == (host, port)


@pytest.mark.parametrize("text", ["host:port", "host:0", "host:99999", ":80"])
def test_listen_refuses_in_words(text: str) -> None:
    with pytest.raises(SettingError, match="expected HOST or HOST:PORT"):
        split_listen(text)


def test_hosts() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("[::1]")
    assert not is_loopback("0.0.0.0")
    assert bracketed("::1") == "[::1]"
    assert bracketed("[::1]") == "[::1]"
    assert advertised_host("10.1.2.3") == "10.1.2.3"
    assert advertised_host("0.0.0.0") != "0.0.0.0"


def test_a_port_in_use_is_said_and_the_last_one_is_kept() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        with pytest.raises(SettingError, match=f"port {port} on 127.0.0.1 is in use"):
            choose_port("127.0.0.1", port, 0)
        assert choose_port("127.0.0.1", 0, port) != port
    again = free_port("127.0.0.1")
    assert choose_port("127.0.0.1", 0, again) == again


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingError, match="cannot listen on"):
        free_port("192.0.2.1")


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    token = pool_token(tmp_path)
    assert token == pool_token(tmp_path)
    assert len(token) == 40
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    (tmp_path / "token").chmod(0o644)
    assert pool_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_a_token_that_a_container_was_handed_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "token").chmod(0o644)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "chmod", read_only)
    assert pool_token(tmp_path) == "abc"


def test_one_lock_a_home(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path), HomeLock(tmp_path)
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_the_server_is_found_or_missed_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(find_server()).exists()
    monkeypatch.setenv("FALLOW_NATS_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(SettingError, match="FALLOW_NATS_SERVER"):
        find_server()


def test_the_servers_configuration_demands_the_token() -> None:
    text = server_config("[::1]", 7000, "secret")
    assert 'token: "secret"' in text
    assert 'host: "::1"' in text
    assert "max_payload: 8MB" in text
    asked_after_s = int(re.search(r'^ping_interval: "(\d+)s"', text, re.MULTILINE)[1])  # type: ignore[index]
    assert asked_after_s > REST_INTERVAL_S, "a node at rest is not woken to say that it is there: it says so by itself"


def test_restarts_back_off() -> None:
    delays = [restart_delay_s(failures) for failures in range(1, 12)]
    assert delays[0] == FIRST_DELAY_S
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S


def test_the_server_leaves_processors_to_those_it_wakes() -> None:
    assert [server_threads(cpus) for cpus in (1, 2, 3, 4, 64)] == [1, 1, 1, 2, 32]
