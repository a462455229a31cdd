"""A job's way out where its sandbox has no network of its own: through the agent, by the variables that all libraries
know, to public addresses alone. A real zygote in each sandbox that works here."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes need Linux", allow_module_level=True)

from fallow.agent import gate as gate_module
from fallow.agent import zygote_inside
from fallow.agent.confined import SCRATCH, Confinement
from fallow.agent.zygote_inside import start_inside
from fallow.sandbox.protocol import Limits, Probe
from tests.sandbox.conftest import working

NAMED = "127.0.0.77"
"""Stands for a public address: the machine that tests run on may have no way out."""
CODE = """
import json, os, socket, sys, urllib.request
names, port, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
found = {}
for name in names:
    try:
        found[name] = urllib.request.urlopen(f'http://{name}:{port}/words?x=1', timeout=20).read().decode()
    except Exception as error:
        found[name] = str(error)
for name in names:
    try:
        socket.create_connection((name, port), 5).close()
        found['direct ' + name] = 'reached'
    except OSError:
        pass
with open(out + '.part', 'w') as file:
    json.dump(found, file)
os.rename(out + '.part', out)
"""


@contextmanager
def listening() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Its port at all addresses of this machine, and who asked for what."""
    heard: list[tuple[str, str]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.connection.getsockname()[0], self.path))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from outside")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], heard
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bubblewrap", "podman", "gvisor"])
async def test_public_addresses_are_reached_through_the_agent_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sandbox = working(name)
    assert sandbox.probe().proxy
    without = Probe(name, sandbox.tier, True, network=False, proxy=True)
    monkeypatch.setattr(sandbox, "probe", lambda: without)
    real = gate_module.is_public
    monkeypatch.setattr(gate_module, "is_public", lambda address, own: address == NAMED or real(address, own))
    monkeypatch.setattr(
        zygote_inside, "zygote_argv", lambda *_: (sys.executable, "-I", "-S", "-c", CODE, names, str(port), out)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # nothing is sent
            own = [asking.getsockname()[0]]
        except OSError:
            own = []  # no network here
    private = ["127.0.0.78", "10.0.0.1", "169.254.169.254", *own]
    out = f"{SCRATCH}/found"
    ours, theirs = socket.socketpair()
    with listening() as (port, heard), ours, theirs:
        names = json.dumps([NAMED, *private])
        limits = Limits(memory_bytes=1 << 30, disk_bytes=64 << 20)
        confined, running = await start_inside(
            Confinement(sandbox, limits, network=True), tmp_path / "inside", sys.executable, theirs.fileno(), (), 1,
            True, (), tmp_path / "log",
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                while running.poll() is None:
                    await asyncio.sleep(0.02)
            scratch = confined.open_scratch()
            with open(f"/proc/self/fd/{scratch}/found") as file:
                found = json.load(file)
        finally:
            await asyncio.to_thread(running.close)
            confined.close()
    assert found.pop(NAMED) == "from outside"
    for address in private:
        assert "403" in found.pop(address)
    assert found == {}, "there is no other way"
    assert heard == [(NAMED, "/words?x=1")]
