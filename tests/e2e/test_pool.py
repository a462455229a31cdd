"""A pool as its users see it: real processes, the program, scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pool import DEADLINE_S, Pool, client_env, lend_always, read_line, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SQUARE = """
    import sys
    import fallow

    app = fallow.App("square")

    @app.function(timeout=60, retries=2)
    def square(x: int) -> int:
        print("seen", x)
        return x * x

    if __name__ == "__main__":
        print(sum(square.map(range(int(sys.argv[1])))))
"""


def test_a_script_finds_the_pool_and_its_job_is_listed(pool: Pool) -> None:
    done = pool.script(SQUARE.replace('print("seen", x)', ""), "100000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sum(x * x for x in range(100_000)))
    assert "own pool" not in done.stderr
    jobs = pool.json("jobs")
    assert jobs[0]["name"] == "square"
    assert jobs[0]["state"] == "succeeded"
    assert jobs[0]["counts"]["done"] == 100_000
    assert jobs[0]["job_id"] in pool.cli("jobs").stdout
    one = pool.json("status", jobs[0]["job_id"][:12])
    assert one["job_id"] == jobs[0]["job_id"]
    shown = pool.cli("status", "square")
    assert "100000/100000 done, 0 failed" in shown.stdout


def test_status_and_nodes(pool: Pool) -> None:
    status = json.loads(pool.cli("status", "--json").stdout)
    assert status["slots"] == 2
    assert status["nodes"] == 1
    nodes = pool.json("nodes")
    assert nodes[0]["state"] == "alive"
    assert nodes[0]["spec"]["slots"] == 2
    assert "alive" in pool.cli("nodes").stdout
    assert "1 with 2 slots" in pool.cli("status").stdout
    once = pool.json("top", "--once")
    assert once["nodes"][0]["spec"]["node_id"] == nodes[0]["spec"]["node_id"]


def test_top_without_a_terminal_prints_lines_until_interrupted(pool: Pool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fallow.cli.main", "top", "--interval", "0.2"],
        env=pool.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "slots busy" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_top_in_a_terminal_is_a_live_view_that_gives_the_terminal_back(pool: Pool) -> None:
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fallow.cli.main", "top", "--interval", "0.2"],
        env={**pool.env, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        try:
            seen += os.read(parent, 65536)
        except OSError:  # the terminal's other end is closed
            return b"end"
        return seen if b"slots busy" in seen else b""

    try:
        wait_for("the view", read)
        process.send_signal(signal.SIGINT)
        wait_for("the end", lambda: read() == b"end")
        assert process.wait(DEADLINE_S) == 130
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert b"\x1b[?1049h" in seen
    assert b"\x1b[?1049l" in seen, "the screen is given back"
    assert b"Traceback" not in seen


def test_run_a_function_of_a_file(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "work.py"
    path.write_text(
        "import fallow\nimport helper_of_work\napp = fallow.App('w')\n\n"
        "@app.function()\ndef scale(x: int, by: float = 2.0, *, loud: bool = False) -> str:\n"
        "    return helper_of_work.shout(str(x * by), loud)\n"
    )
    with path.open("a") as file:
        file.write(
            "\n\n@app.cls()\nclass Model:\n    def __init__(self, factor: float): self.factor = factor\n\n"
            "    @fallow.method\n"
            "    def predict(self, x: int): return helper_of_work.shout(str(x * self.factor), True)\n"
        )
    (tmp_path / "helper_of_work.py").write_text("def shout(text, loud):\n    return text + '!' * loud\n")
    assert pool.cli("run", f"{path}::scale", "4", "--by", "1.5", "--loud").stdout == "6.0!\n"
    assert pool.cli("run", str(path), "--x=3").stdout == "6.0\n"
    assert pool.cli("run", f"{path}::Model.predict", "3", "--factor", "0.5").stdout == "1.5!\n"
    wrong = pool.cli("run", str(path), "four")
    assert wrong.returncode == 1
    assert "x must be int, not 'four'" in wrong.stderr
    missing = pool.cli("run", f"{path}::other", "1")
    assert "has no function 'other'" in missing.stderr


def test_run_a_file_whose_name_is_no_module(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "my-work.py"
    path.write_text(
        "import fallow\napp = fallow.App('w')\n\n@app.function()\ndef double(x: int):\n    return helper(x)\n\n"
        "def helper(x):\n    return 2 * x\n\nif __name__ == '__main__':\n    print('as a script')\n"
    )
    assert pool.cli("run", f"{path}::double", "21").stdout == "42\n"
    assert pool.cli("run", str(path)).stdout == "as a script\n"


def test_an_error_of_a_function_keeps_its_type_and_lines(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import fallow\napp = fallow.App('w')\n\n@app.function()\ndef divide(x: int):\n    return 1 / x  # the line\n"
    )
    done = pool.cli("run", str(path), "0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "return 1 / x  # the line" in done.stderr


def test_cancel_ends_a_running_job(pool: Pool) -> None:
    script = pool.start_script("""
        import time, fallow
        app = fallow.App("a")

        @app.function()
        def slow(x):
            time.sleep(600)

        try:
            list(slow.map(range(10)))
        except fallow.JobCancelled as error:
            print("cancelled:", error)
    """)
    try:
        job = wait_for("the job", lambda: [j for j in pool.json("jobs", "--active") if j["name"] == "slow"])[0]
        done = pool.cli("cancel", job["job_id"], "--reason", "too slow for me")
        assert done.returncode == 0, done.stderr
        out, errors = script.communicate(timeout=DEADLINE_S)
    finally:
        script.kill()
    assert "cancelled: " in out, errors
    assert "too slow for me" in out
    state = pool.json("status", job["job_id"])
    assert state["state"] == "cancelled"
    again = pool.cli("cancel", job["job_id"])
    assert again.returncode == 0
    assert "has ended already (cancelled)" in again.stdout
    unknown = pool.cli("cancel", "no-such-job")
    assert unknown.returncode == 1
    assert "no-such-job" in unknown.stderr


def test_logs_of_a_detached_job(pool: Pool) -> None:
    done = pool.script("""
        import fallow
        app = fallow.App("a")

        @app.function()
        def talk(x):
            print("saying", x)
            return x

        handle = talk.map(range(5), detached=True)
        print(handle.id)
    """)
    job_id = done.stdout.strip()
    assert job_id.startswith("job-"), done.stderr
    followed = pool.cli("logs", job_id, "--follow")
    assert sorted(line.split("] ")[1] for line in followed.stdout.splitlines()) == [f"saying {n}" for n in range(5)]
    read = pool.script(f"""
        import fallow
        print(list(fallow.job("{job_id}").results()))
    """)
    assert read.stdout.strip() == "[0, 1, 2, 3, 4]"


def test_a_second_up_says_that_it_runs_already(pool: Pool) -> None:
    done = pool.cli("up")
    assert done.returncode == 1
    assert "runs already" in done.stderr
    assert "--home" in done.stderr


def test_a_port_in_use_is_said(pool: Pool, tmp_path: Path) -> None:
    port = pool.url.rpartition(":")[2]
    done = pool.cli("up", "--listen", f"127.0.0.1:{port}", "--home", str(tmp_path / "other"))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_token_is_refused_in_words(pool: Pool, tmp_path: Path) -> None:
    wrong = "0" * 40 + "@" + pool.url.rpartition("@")[2]
    home = tmp_path / "other"
    for command in (["connect", wrong], ["join", wrong]):
        done = pool.cli(*command, "--home", str(home))
        assert done.returncode == 1, command
        assert "refused the token" in done.stderr
    listed = pool.cli("jobs", env={"FALLOW_URL": wrong})
    assert listed.returncode == 1
    assert "refused the token" in listed.stderr


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to become another user")
def test_another_user_of_this_machine_cannot_use_the_pool(pool: Pool, tmp_path: Path) -> None:
    for path in (pool.home / "token", pool.home / "pool.json", pool.home / "pool" / "nats.conf"):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (pool.home / "pool", pool.home / "pool" / "blobs"):
        assert path.stat().st_mode & 0o077 == 0, path
    port = int(pool.url.rpartition(":")[2])
    # What a stranger can do with nothing but the port: talk to it. The server answers nothing without the token.
    private = [str(pool.home / name) for name in ("token", "pool.json", "pool/nats.conf")]
    code = f"""
import os, socket
server = socket.create_connection(("127.0.0.1", {port}))
server.settimeout(30)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in {private!r}:
    try:
        open(path)
        print("READ", path)
    except PermissionError:
        pass
server.recv(4096)
server.sendall(b"CONNECT {{}}\\r\\nSUB > 1\\r\\nPUB fw.pool 0\\r\\n\\r\\nPING\\r\\n")
answer = b""
while True:
    try:
        chunk = server.recv(4096)
    except ConnectionResetError:
        break
    if not chunk:
        break
    answer += chunk
print(answer.decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert "Authorization Violation" in done.stdout, done.stderr
    assert "PONG" not in done.stdout
    assert "MSG" not in done.stdout
    assert "READ" not in done.stdout


def test_a_joined_node_takes_its_share_and_leaves(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(slots=1)
    node = pool.join("second")
    wait_for("the second node", lambda: len(pool.json("nodes")) == 2)
    script = """
        import time, fallow
        app = fallow.App("a")

        @app.function()
        def nap(x):
            time.sleep(0.05)
            return x

        print(sum(nap.map(range(100))))
    """
    assert pool.script(script).stdout.strip() == "4950"
    shares = pool.json("jobs")[0]["nodes"]
    assert shares.get("second", 0) > 10, shares
    drained = pool.cli("drain", "second")
    assert drained.returncode == 0, drained.stderr
    wait_for("draining", lambda: [n for n in pool.json("nodes") if n["state"] == "draining"])
    assert pool.cli("resume", "second").returncode == 0
    wait_for("no draining", lambda: not [n for n in pool.json("nodes") if n["state"] == "draining"])
    node.send_signal(signal.SIGINT)
    assert node.wait(DEADLINE_S) == 0
    wait_for("one node", lambda: len(pool.json("nodes")) == 1)
    assert len(pool.json("nodes", "--all")) == 2


def test_a_node_waits_for_a_pool_that_is_away(make_pool: Callable[..., Pool], tmp_path: Path) -> None:
    pool = make_pool(arguments=("--no-agent",))
    address = pool.url
    pool.stop()
    pool.assert_nothing_left()
    said = tmp_path / "said.txt"
    lend_always(tmp_path / "node")
    with open(said, "wb") as output:
        node = subprocess.Popen(
            [sys.executable, "-m", "fallow.cli.main", "join", address, "--slots", "1", "--name", "patient"],
            env=client_env(tmp_path / "node"),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_for("words of patience", lambda: "Trying again" in said.read_text())
        pool.start()
        assert pool.url == address, "the port stays the same, so that nodes find the pool again"
        wait_for("the node", lambda: [n for n in pool.json("nodes") if n["spec"]["name"] == "patient"])
        wait_for("its words", lambda: "works for the pool" in said.read_text())
        pool.stop()
        time.sleep(0.2)
        pool.start()
        wait_for("the node again", lambda: [n for n in pool.json("nodes") if n["state"] == "alive"])
        node.send_signal(signal.SIGINT)
        assert node.wait(DEADLINE_S) == 0
    finally:
        node.kill()
        node.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_a_pool_leaves_nothing_behind(make_pool: Callable[..., Pool], number: signal.Signals) -> None:
    pool = make_pool()
    script = pool.start_script("""
        import time, fallow
        app = fallow.App("a")

        @app.function()
        def slow(x):
            time.sleep(600)

        list(slow.map(range(10)))
    """)
    try:
        wait_for("work", lambda: [j for j in pool.json("jobs") if j["counts"]["running"]])
        assert pool.stop(number) == 0
        pool.assert_nothing_left()
        assert not (pool.home / "pool.json").exists()
        assert "The pool has ended" in pool.said()
    finally:
        script.kill()
        script.wait()


def test_a_killed_supervisor_takes_everything_along(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    assert pool.process is not None
    pool.process.kill()
    pool.process.wait()
    pool.assert_nothing_left()
    assert "no pool is known here" in pool.cli("jobs").stderr
    pool.start()
    assert pool.json("status")["nodes"] == 1


def test_connect_and_disconnect(pool: Pool, tmp_path: Path) -> None:
    home = tmp_path / "user"
    env = {"FALLOW_HOME": str(home)}
    assert pool.cli("connect", pool.url, env=env).returncode == 0
    assert (home / "connect.json").stat().st_mode & 0o077 == 0
    assert pool.cli("status", "--json", env=env).returncode == 0
    assert pool.url.rpartition("@")[2] in pool.cli("connect", env=env).stdout
    assert pool.cli("disconnect", env=env).returncode == 0
    assert pool.cli("status", env=env).returncode == 1
    shutil.rmtree(home)


@pytest.mark.parametrize("how", [[], ["-m", "fallow.cli.main", "run"]], ids=["python", "fallow run"])
def test_an_interrupted_script_cancels_its_job(pool: Pool, tmp_path: Path, how: list[str]) -> None:
    path = tmp_path / "naps.py"
    path.write_text(
        textwrap.dedent(
            """
            import time
            import fallow
            app = fallow.App("naps")

            @app.function()
            def interrupted_nap(x):
                time.sleep(0.2)
                return x

            for y in interrupted_nap.map(range(10_000)):
                print(y, flush=True)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, *how, str(path)],
        env=pool.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert read_line(process) == "0"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert "interrupted; cancelled interrupted_nap" in said
    jobs = [job for job in json.loads(pool.cli("jobs", "--json").stdout) if job["name"] == "interrupted_nap"]
    assert {job["state"] for job in jobs} == {"cancelled"}


def test_the_jobs_of_a_killed_script_end_long_before_a_silent_client_is_given_up(pool: Pool) -> None:
    script = pool.start_script("""
        import time
        import fallow
        app = fallow.App("killed")

        @app.function()
        def killed_nap(x):
            time.sleep(600)

        with fallow.Executor() as executor:
            executor.submit(killed_nap.fn, 1)
            print(list(killed_nap.map(range(1))))  # of two slots each has one, whoever comes first
    """)

    def mine() -> list[dict[str, Any]]:
        return [job for job in pool.json("jobs") if job["name"] in ("killed_nap", "executor")]

    try:
        wait_for("both jobs", lambda: len([job for job in mine() if job["counts"]["running"]]) == 2)
    finally:
        script.terminate()
        script.wait()
    began = time.monotonic()
    wait_for("their end", lambda: all(job["state"] == "cancelled" for job in mine()))
    if time.monotonic() - began < 55:  # else the machine was so slow that it could not be told from a cut
        assert {job["reason"] for job in mine()} == {"its script ended without a word"}
    assert script.returncode == -signal.SIGTERM
