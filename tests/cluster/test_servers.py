"""NATS servers that see each other or do not, started as an operator does it, and what is said of them."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.cli.main import main
from fallow.cli.nats_server import monitor_path
from fallow.wire.address import PoolAddress
from fallow.wire.server_sight import ServerSight, look_at_servers, server_groups, sight_words
from tests.chaos.parts import Part
from tests.engines.postgres import free_ports
from tests.pool import MARK, client_env, wait_for, wait_for_none

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="`fallow nats` needs POSIX")]


class Servers:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.parts: list[Part] = []

    def start(self, token: str, ports: tuple[int, int], *routes: int) -> Part:
        home = self.folder / f"home-{ports[0]}"
        home.mkdir(mode=0o700)
        (home / "token").touch(0o600)
        (home / "token").write_text(token)
        words = ["nats", "--listen", f"127.0.0.1:{ports[0]}", "--cluster", f"127.0.0.1:{ports[1]}"]
        words += [word for route in routes for word in ("--route", f"127.0.0.1:{route}")]
        command = [sys.executable, "-m", "fallow.cli.main", *words]
        part = Part(
            f"nats{ports[0]}", command, {**client_env(home), MARK: self.mark}, self.folder / f"{ports[0]}.txt",
            "A NATS server is up",
        )  # fmt: skip
        self.parts.append(part)
        part.start()
        return part


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    try:
        yield made
        assert {part.end() for part in made.parts} == {0}
        wait_for_none(made.mark)
    finally:
        for part in made.parts:
            part.kill()


def test_servers_say_whom_they_have_joined_and_who_refuses_them(servers: Servers) -> None:
    ports = free_ports(8)
    a, b, stranger, alone = zip(ports[:4], ports[4:], strict=True)
    token = os.urandom(16).hex()
    one = servers.start(token, a, b[1])
    wait_for("word of silence", lambda: f"nothing answers yet at the route 127.0.0.1:{b[1]}" in one.said())
    two = servers.start(token, b, a[1], b[1])
    other = servers.start("another" + token, stranger, a[1])
    servers.start(token, alone)

    for part, route in ((one, b[1]), (two, a[1])):
        wait_for("them to join", lambda part=part, route=route: f"the route 127.0.0.1:{route} is up" in part.said())
    refused = f"the server at the route 127.0.0.1:{a[1]} answers, but the two have not joined"
    wait_for("word of the other secret", lambda: refused in other.said())
    assert "is up: " not in other.said()

    def seen(*ports: tuple[int, int]) -> tuple[ServerSight, ...]:
        return look_at_servers(PoolAddress(tuple(f"127.0.0.1:{port}" for port, _ in ports), token))

    both = seen(a, b)
    assert [(one.trouble, one.sees) for one in both] == [("", (both[1].server,)), ("", (both[0].server,))]
    assert sight_words(both) == []
    mixed = seen(a, b, alone, stranger)
    assert server_groups(mixed) == [(mixed[0].server, mixed[1].server), (mixed[2].server,)]
    assert mixed[3].trouble == f"{mixed[3].server} refused the token"
    words = " ".join(sight_words(mixed))
    assert f"do not all see each other: {mixed[0].server} and {mixed[1].server}; {mixed[2].server}." in words

    two.end()
    wait_for("word of the loss", lambda: f"nothing answers any more at the route 127.0.0.1:{b[1]}" in one.said())


def test_what_a_server_tells_of_itself_is_found_by_its_secret_alone(servers: Servers) -> None:
    import json
    import urllib.error
    import urllib.request

    ports = free_ports(3)
    servers.start("secret", (ports[0], ports[1]), ports[2])
    state = servers.folder / f"home-{ports[0]}" / "nats" / str(ports[0])
    assert (state / "nats.conf").stat().st_mode & 0o077 == 0
    found = wait_for("its ports", lambda: list(state.glob("*.ports")))
    url = json.loads(found[0].read_text())["monitoring"][0]
    for path in ("", "routez", "varz", f"{monitor_path('other')}/routez"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/{path}", timeout=30)
    with urllib.request.urlopen(f"{url}/{monitor_path('secret')}/routez", timeout=30) as answer:
        assert json.load(answer)["num_routes"] == 0


def test_a_pool_that_is_not_there_is_no_traceback() -> None:
    ports = free_ports(2)
    seen = look_at_servers(PoolAddress(tuple(f"127.0.0.1:{port}" for port in ports), "x"))
    assert all("nothing answers" in one.trouble for one in seen)
    assert server_groups(seen) == []


def test_commands_tell_what_is_wrong_among_the_servers(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is at one of two servers that do not see each other may find no coordinator, and is told why."""
    ports = free_ports(4)
    for port, cluster in (ports[:2], ports[2:]):
        servers.start("secret", (port, cluster))
    monkeypatch.setenv("FALLOW_URL", f"secret@127.0.0.1:{ports[0]},127.0.0.1:{ports[2]}")
    monkeypatch.setenv("FALLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("fallow.cli.client.PATIENCE_S", 0.1)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "the NATS servers do not all see each other" in said
    assert "no coordinator answers" in said
