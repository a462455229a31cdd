"""Another user of the same machine cannot read a pool's secret, and without it can run nothing."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (sockets want it, and the other user cannot load modules)
import json
import os
import pwd
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.wire import subjects
from fallow.wire.address import parse_address
from fallow.wire.messages import GetPool, encode
from tests.pool import Pool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"),
]


def as_nobody(action: Callable[[], object]) -> object:
    """What the action returns (as JSON) in a child that runs as the user `nobody`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            answer = action()
        except BaseException:
            answer = traceback.format_exc()
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


def test_no_file_with_the_secret_is_readable(pool: Pool) -> None:
    secret = parse_address(pool.url).secret.encode()
    # As if all folders above were open: only the files' own modes stand between.
    holders = [path for path in pool.home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert holders, "the secret must be somewhere"
    assert [str(path) for path in holders if path.stat().st_mode & 0o077] == []

    def read_them() -> list[str]:
        read = []
        for path in holders:
            try:
                Path(path).read_bytes()
                read.append(str(path))
            except PermissionError:
                pass
        return read

    assert as_nobody(read_them) == []


@pytest.mark.parametrize("connect", ["{}", '{"auth_token":"guess"}', '{"user":"a","pass":"b"}'])
def test_nothing_is_answered_without_the_secret(pool: Pool, connect: str) -> None:
    host, _, port = parse_address(pool.url).servers[0].rpartition(":")
    request = encode(GetPool())

    def ask() -> str:
        with socket.create_connection((host, int(port)), timeout=30) as wire:
            wire.sendall(
                f"CONNECT {connect}\r\nSUB answer 1\r\nPUB {subjects.POOL} answer {len(request)}\r\n".encode()
                + request
                + b"\r\nPING\r\n"
            )
            heard = b""
            while piece := wire.recv(65536):
                heard += piece
        return heard.decode(errors="replace")

    heard = as_nobody(ask)
    assert isinstance(heard, str)
    assert "Authorization Violation" in heard
    assert "MSG " not in heard
    assert "PONG" not in heard


def test_the_doors_are_on_loopback_alone(pool: Pool) -> None:
    host, _, port = parse_address(pool.url).servers[0].rpartition(":")
    assert host == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((outside, int(port)), timeout=10).close()
