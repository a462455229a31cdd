"""`fallow node` and `fallow join --dry-run` as the owner of a machine types them, on a real pool with a real agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool import DEADLINE_S, Pool, ask_json, client_env, running_pool, wait_for

pytestmark = pytest.mark.slow

SPIN = """
    import sys, time
    import fallow

    app = fallow.App("spin")

    @app.function(retries=0)
    def spin(seconds):
        import time
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            pass
        return 1

    if __name__ == "__main__":
        print(sum(spin.map([float(sys.argv[1])] * int(sys.argv[2]))))
"""

NAP = SPIN.replace("pass", "time.sleep(0.02)")


class Owner:
    """The owner of one machine that has joined the pool."""

    def __init__(self, pool: Pool, home: Path) -> None:
        self.pool = pool
        self.home = home

    def say(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fallow.cli.main", *words],
            env=client_env(self.home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        answers: list[dict[str, Any]] = ask_json(client_env(self.home), "node", "status")
        return answers[0]

    def until(self, state: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            status = self.status()
            return status if status["state"] == state else None

        return wait_for(f"the node to be {state}", look)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    folder = tmp_path_factory.mktemp("owner")
    with running_pool(folder / "home", "--no-agent") as pool:
        home = folder / "desk"
        pool.join("desk", home=home)
        owner = Owner(pool, home)
        wait_for("an agent", lambda: (home / "agent" / "control.json").exists())
        owner.until("idle")
        yield owner


def test_no_agent(tmp_path: Path) -> None:
    nobody = Owner.__new__(Owner)
    nobody.home = tmp_path
    assert "fallow join TOKEN@HOST:PORT" in nobody.say("node", "status", code=1)
    assert "Nothing is kept" in nobody.say("node", "cache", "list")
    assert "say what may go" in nobody.say("node", "cache", "clear", code=1)
    assert "when an agent starts" in nobody.say("node", "set", "owner.idle=5 min")
    assert "no time at all" in nobody.say("node", "pause", "--for", "0 s", code=1)


def test_a_dry_run_shows_and_starts_nothing(owner: Owner, tmp_path: Path) -> None:
    secret = tmp_path / "address"
    secret.write_text(owner.pool.url)
    guest = Owner(owner.pool, tmp_path / "guest")
    said = guest.say("join", "--dry-run", "--json", "--own-pool", "--from", str(secret))
    shown = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert shown["found"]["cpu_count"] >= 1
    assert shown["network"]["up_bytes_per_s"] > 0
    assert shown["scores"]["speed"] > 0
    assert shown["sandbox"]["works"]
    assert not (tmp_path / "guest" / "agent" / "node.key").exists()
    assert "must hold one address" in guest.say("join", "--from", __file__, code=1)


def test_who_lends_the_machine_a_second_time_is_told(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from fallow.cli.join import _say_who_lends_already

    monkeypatch.setenv("FALLOW_HOME", str(owner.home))
    _say_who_lends_already(False)
    assert "another agent of yours lends this machine already" in capsys.readouterr().err
    monkeypatch.setenv("FALLOW_HOME", str(tmp_path))
    _say_who_lends_already(False)
    assert capsys.readouterr().err == ""


def test_pause_stops_at_once_and_resume_goes_on(owner: Owner) -> None:
    script = owner.pool.start_script(NAP, "0.2", "20")
    working = owner.until("working")
    assert working["jobs"][0]["workers"] == 1
    said = owner.say("node", "pause")
    assert "  state     paused: you paused it with `fallow node pause` (for" in said
    assert "  an hour   processors have no market price; yours: fallow node limits earn.cpu_per_hour=0.02" in said
    paused = wait_for("nothing to run", lambda: s if not (s := owner.status())["jobs"] else None)
    assert paused["state"] == "paused"
    assert owner.status()["tasks_done"] == paused["tasks_done"]
    owner.say("node", "resume")
    owner.until("working")
    out, errors = script.communicate(timeout=DEADLINE_S)
    assert out.strip() == "20", errors
    assert owner.status()["worked"]["total"]["slot_s"] > 0


def test_a_pause_ends_by_itself(owner: Owner) -> None:
    assert "it goes on in" in owner.say("node", "pause", "--for", "1 s")
    assert owner.until("idle")["paused_for_s"] is None


def test_draining_finishes_what_runs(owner: Owner) -> None:
    script = owner.pool.start_script(NAP, "0.2", "20")
    owner.until("working")
    owner.say("node", "drain")
    wait_for("the slot to be free", lambda: owner.status()["busy_slots"] == 0)
    assert owner.status()["state"] == "draining"
    owner.say("node", "resume")
    out, errors = script.communicate(timeout=DEADLINE_S)
    assert out.strip() == "20", errors


def test_settings_are_taken_in_and_broken_ones_are_not(owner: Owner) -> None:
    file = owner.home / "agent" / "node.toml"
    assert "in force now" in owner.say("node", "limits", "share.up=5 MB/s")
    assert owner.status()["limits"]["share.up"] == "5 MB/s"
    before = file.read_text()
    file.write_text(before.replace("5 MB/s", "5 parsecs"))
    words = owner.say("node", "reload", code=1)
    assert f"{file}, line" in words
    status = owner.status()
    assert status["limits"]["share.up"] == "5 MB/s", "what was in force stays so"
    assert "parsecs" in status["settings"]["problem"]
    file.write_text(before)
    owner.say("node", "reload")
    assert not owner.status()["settings"]["problem"]
    assert "*" in owner.say("node", "limits")


def test_looks(owner: Owner) -> None:
    assert json.loads(owner.say("node", "top", "--once", "--json"))["node"] == "desk"
    assert "desk" in owner.say("node", "top", "--once")
    assert json.loads(owner.say("node", "cache", "list", "--json"))["limit_bytes"] == 20 * 10**9
    assert "Removed 0" in owner.say("node", "cache", "clear", "--all")
    probes = json.loads(owner.say("node", "sandbox", "--json"))["probes"]
    assert "process" in [probe["backend"] for probe in probes]


def test_an_agent_that_was_killed_leaves_clear_words(owner: Owner) -> None:
    assert "agent 7" in owner.say("node", "status", "--agent", "7", code=1)


def test_the_memory_that_is_lent_is_a_limit_for_all_tasks_together(owner: Owner) -> None:
    owner.say("node", "set", "share.memory=400 MB")
    try:
        done = owner.pool.script(
            """
            import fallow

            app = fallow.App("hoard")

            @app.function(retries=0)
            def hoard(size):
                import time
                held = bytearray(size)
                time.sleep(60)
                return len(held)

            if __name__ == "__main__":
                try:
                    list(hoard.map([700_000_000]))
                except fallow.TaskOutOfMemory as error:
                    print("refused:", error)
            """
        )
        assert "refused: " in done.stdout, done.stderr
        assert "its owner lends 400 MB" in done.stdout
    finally:
        owner.say("node", "set", "share.memory=")
