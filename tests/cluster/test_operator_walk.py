"""The operator's guide, word by word: from nothing to three coordinators and three NATS servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from tests.engines.postgres import Postgres, programs
from tests.pool import MARK, client_env, marked_processes, wait_for, wait_for_none

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(programs() is None, reason="no PostgreSQL is installed"),
]
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operator.md"


def commands() -> list[str]:
    part = GUIDE.read_text().split("## From one machine to many")[1].split("### What happens when")[0]
    return re.findall(r"```sh\n(.*?)```", part, re.DOTALL)


def test_the_walk(tmp_path: Path) -> None:
    found = programs()
    assert found is not None
    postgres = Postgres(found)
    mark = uuid.uuid4().hex
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "fallow").write_text(f'#!/bin/sh\nexec {sys.executable} -m fallow.cli.main "$@"\n')
    (tools / "fallow").chmod(0o755)
    said = tmp_path / "said"
    env = {
        **client_env(tmp_path / "home", STORE=postgres.url(), BLOBS=str(tmp_path / "blobs")),
        "PATH": f"{tools}:{os.environ['PATH']}",
        MARK: mark,
    }
    *setting_up, using, draining = commands()
    shell: subprocess.Popen[str] | None = None
    try:
        postgres.start()
        shell = subprocess.Popen(
            ["sh", "-e"], env=env, stdin=subprocess.PIPE, stdout=said.open("wb"), stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert shell.stdin is not None
        # What a person waits for between the steps, a line that it is up, the script polls for.
        wait_ready = "".join(
            f"for i in $(seq 300); do curl -fs http://127.0.0.1:1808{n}/readyz >/dev/null && break; sleep 0.2; done\n"
            for n in (1, 2, 3)
        )
        wait_node = "for i in $(seq 300); do fallow nodes --json | grep -q '\"n1\"' && break; sleep 0.2; done\n"
        script = "\n".join([*setting_up, wait_ready, using, wait_node, draining, "sleep 1000"])
        shell.stdin.write(script)
        shell.stdin.close()

        def drained() -> list[dict[str, object]] | None:
            done = subprocess.run(["fallow", "status", "--json"], env=env, capture_output=True, text=True)
            if done.returncode != 0:
                return None
            status = json.loads(done.stdout)
            names = {info["name"] for info in status["coordinators"]}
            return [status] if names == {"c1", "c2"} and status["slots"] == 2 else None

        status = (wait_for("two coordinators and a node", drained, 120.0) or [{}])[0]
        assert status["name"] == "lab"
        code = "import fallow; f = fallow.App('walk').function()(abs); print(sum(f.map(range(-100, 0))))"
        asked = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        assert asked.stdout.strip() == str(sum(range(101))), asked.stderr
    finally:
        for process in marked_processes(mark):
            with contextlib.suppress(psutil.NoSuchProcess):  # some end by themselves when others do
                process.send_signal(signal.SIGTERM)
        try:
            wait_for_none(mark)
        finally:
            for process in marked_processes(mark):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if shell is not None:
                shell.wait(10)
            postgres.remove()
