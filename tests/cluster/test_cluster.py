"""A pool of several coordinators and NATS servers, started as an operator does it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.parts import Large, Part, http_get
from tests.engines.postgres import programs
from tests.pool import ask_json, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(programs() is None, reason="no PostgreSQL is installed"),
]

SCRIPT = """
    import time
    import fallow
    app = fallow.App("cluster")

    @app.function()
    def double(x):
        return 2 * x

    assert double.remote(0) == 0
    print("ready", flush=True)
    longest, number, end = 0.0, 0, time.monotonic() + 6
    while time.monotonic() < end:
        began = time.monotonic()
        assert double.remote(number) == 2 * number
        longest = max(longest, time.monotonic() - began)
        number += 1
        time.sleep(0.01)
    print(longest, flush=True)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Large]:
    made = Large(tmp_path_factory.mktemp("large"), uuid.uuid4().hex)
    try:
        made.start_all(coordinators=2, nodes=1)
        yield made
        codes = {
            name: code for name, code in made.end_all().items() if made.parts[name].says in made.parts[name].said()
        }
        assert set(codes.values()) == {0}, codes
        assert not made.left_over()
    finally:
        made.close()


def status(large: Large) -> dict[str, object]:
    return dict(ask_json(large.client_env("operator"), "status"))


def coordinators(large: Large) -> set[str]:
    return {info["name"] for info in status(large)["coordinators"]}  # type: ignore[attr-defined]


def test_coordinators_are_listed_healthy_and_drained(large: Large) -> None:
    wait_for("both to be known", lambda: coordinators(large) == {"c1", "c2"})
    assert status(large)["name"] == "large"
    for name in ("c1", "c2"):
        assert http_get(large.health[name], "/healthz")[0] == 200
        code, body = http_get(large.health[name], "/readyz")
        assert (code, body["ready"], body["coordinator"]) == (200, True, name)
    assert http_get(large.health["c1"], "/other")[0] == 404
    part = large.coordinator("c3")
    part.start()
    wait_for("the third to be known", lambda: coordinators(large) == {"c1", "c2", "c3"})
    done = large.cli("drain", "c3")
    assert done.returncode == 0, done.stderr
    assert part.process is not None
    assert part.process.wait(60) == 0
    assert "has left" in part.said()
    wait_for("the third to be gone", lambda: coordinators(large) == {"c1", "c2"})
    unknown = large.cli("drain", "nobody")
    assert unknown.returncode == 1
    assert "no node matches 'nobody'" in unknown.stderr


def test_a_node_is_drained_by_its_name(large: Large) -> None:
    assert "takes no more" in large.cli("drain", "n1").stdout
    wait_for("it to drain", lambda: ask_json(large.client_env("operator"), "nodes")[0]["state"] == "draining")
    assert "takes work again" in large.cli("resume", "n1").stdout


def _longest_call(large: Large, tmp_path: Path, trouble: Callable[[], None]) -> float:
    """Of a script that calls all the time, while there is trouble. Seconds."""
    script = tmp_path / "calls.py"
    script.write_text(textwrap.dedent(SCRIPT))
    client = subprocess.Popen(
        [sys.executable, str(script)], env=large.client_env("client"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        trouble()
        longest = float(client.communicate(timeout=60)[0])
    finally:
        client.kill()
        client.wait()
    print(f"the longest call took {longest:.2f} s")
    return longest


def test_a_killed_nats_server_costs_a_client_less_than_two_seconds(large: Large, tmp_path: Path) -> None:
    def kill() -> None:
        for index in (1, 2):  # wherever it was connected, it is one of these two, or moves to the third
            large.parts[f"nats{index}"].kill()
            time.sleep(1.5)
            large.nats(index - 1).start()

    longest = _longest_call(large, tmp_path, kill)
    assert longest < 10.0, "generous on a loaded machine; on an idle one it is under two seconds"


def test_a_stopped_nats_server_is_left_by_whoever_waits(large: Large, tmp_path: Path) -> None:
    """Its connections stand, and nothing comes: clients, coordinators and agents at work find out in two seconds."""

    def stop() -> None:
        for index in (1, 2):
            large.parts[f"nats{index}"].signal_all(signal.SIGSTOP)
            time.sleep(2.5)
            large.parts[f"nats{index}"].signal_all(signal.SIGCONT)

    longest = _longest_call(large, tmp_path, stop)
    assert longest < 12.0, "generous on a loaded machine; on an idle one it is under three seconds"


def test_a_coordinator_that_is_stopped_is_not_ready(large: Large) -> None:
    """Its session lapses; when it goes on it is ready again by itself."""
    child = large.parts["c2"].children()[0]
    child.send_signal(signal.SIGSTOP)
    try:
        wait_for("the other to lead alone", lambda: coordinators(large) == {"c1"})
    finally:
        child.send_signal(signal.SIGCONT)
    wait_for("it to be ready", lambda: http_get(large.health["c2"], "/readyz")[0] == 200)
    wait_for("both to be known", lambda: coordinators(large) == {"c1", "c2"})


def refused(part: Part) -> str:
    """What a part says that does not start."""
    part.log = part.log.with_suffix(".refused")
    part.launch()
    assert part.process is not None
    assert part.process.wait(60) == 1, part.said()
    return " ".join(part.said().split())


def test_bad_input_is_refused_in_words(large: Large) -> None:
    assert large.postgres is not None
    assert "the user name or the password is wrong" in refused(
        large.coordinator("w1", store=large.postgres.url(password="wrong"))
    )
    assert "no server listens there" in refused(large.coordinator("w2", store="postgresql://fallow:x@127.0.0.1:9/x"))
    assert "SQLite holds a pool of one coordinator" in refused(large.coordinator("w3", store="sqlite:////tmp/x.db"))
    running, health = large.parts["c1"], large.health["c1"]
    assert "runs already" in refused(large.coordinator("c1"))
    large.parts["c1"], large.health["c1"] = running, health
    assert "serve the pool 'large'" in refused(large.coordinator("w4", store=large.postgres.url("other_pool")))
    assert "health cannot be served on" in refused(large.coordinator("w5", "--health", health))
    assert "is not a store that Fallow knows" in refused(large.coordinator("w6", store="mysql://x/y"))
    elsewhere = large.coordinator("w7", "--blobs", str(large.folder / "elsewhere"))
    assert "Give it the same --blobs" in refused(elsewhere)


def test_a_coordinator_of_another_pool_is_refused(large: Large) -> None:
    (large.home / "coordinators" / "moved").mkdir(parents=True)
    (large.home / "coordinators" / "moved" / "pool-id").write_text("pool-another\n")
    assert "and this coordinator to pool-another" in refused(large.coordinator("moved"))


def test_status_says_whether_the_servers_see_each_other(large: Large) -> None:
    assert "3, which see each other" in large.cli("status").stdout
    sees = {one["server"]: len(one["sees"]) for one in status(large)["servers"]}  # type: ignore[attr-defined]
    assert sees == {f"127.0.0.1:{port}": 2 for port in large.nats_ports}
    assert "Its 3 NATS servers see each other." in large.parts["c1"].said()


def test_a_nats_server_needs_a_port(large: Large) -> None:
    done = large.cli("nats", "--listen", "127.0.0.1", "--home", str(large.home))
    assert "names no port" in done.stderr
