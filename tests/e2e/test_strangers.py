"""A machine that is lent to strangers: their work runs there in a sandbox, and harms neither it nor other guests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plain_user import USER, command, home_of_user
from tests.pool import REPOSITORY, Pool, lend_always, running_pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

CANARY = "canary-5d1f0c"
nodes: dict[Pool, Path] = {}
"""The homes of the lent machines."""


EVERY = pytest.mark.parametrize("lent", ["bubblewrap", "gvisor", "an ordinary user"], indirect=True)
"""The others need not be tried under an ordinary user too: `tests/sandbox/test_plain_user.py` tries its sandbox."""


@pytest.fixture(scope="module", params=["bubblewrap", "podman", "gvisor"])
def lent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool whose one node is a stranger's."""
    if sys.platform != "linux":
        pytest.skip("sandboxes need Linux")
    from tests.sandbox.conftest import working

    is_plain = request.param == "an ordinary user"
    backend = "bubblewrap" if is_plain else request.param
    working(backend)
    if is_plain and os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user anyway")
    folder = tmp_path_factory.mktemp("strangers")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(running_pool(folder / "home", "--no-agent"))
        node = (stack.enter_context(home_of_user()) if is_plain else folder) / "node"
        node.mkdir()
        (node / "canary.txt").write_text(CANARY)
        lend_always(node)
        with (node / "agent" / "node.toml").open("a") as settings:
            settings.write(f'\n[sandbox]\nbackend = "{backend}"\ntask_disk = "100 MB"\n')
        if is_plain:
            # (A pool of another account is a stranger's, though it is on this very machine.)
            for path in (node, *node.rglob("*")):
                os.chown(path, USER, USER)
            pool.join("lent", 2, node, before=command(), HOME=str(node.parent), LOGNAME="plain")
        else:
            pool.join("lent", 2, node, "--strangers")
        nodes[pool] = node
        wait_for("the node", lambda: any(found["state"] == "alive" for found in pool.json("nodes")))
        yield pool


def run(pool: Pool, text: str, *arguments: str) -> list[str]:
    done = pool.script(text, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_work_of_every_kind_runs_inside(lent: Pool, tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text("from a file")
    said = run(
        lent,
        """
        import os, sys, time
        import fallow

        app = fallow.App("inside")

        @app.function
        def square(x):
            return x * x

        @app.function
        def where(x):
            return (os.getcwd().startswith("/scratch/"), os.getuid() != 0, {"a"}, None)

        @app.function
        def large(x):
            return bytes([x]) * 1_000_000

        @app.function
        def length(item, table, path):
            return len(item), len(table), open(path).read()

        @app.function
        def nested(n):
            return sum(square.map(range(n)))

        @app.function
        def not_plain(x):
            return {"model": [object()]}

        @app.function
        def raises(x):
            raise KeyError("who")

        @app.function(timeout=1)
        def slow(x):
            time.sleep(60)

        @app.function(memory="300MB")
        def hungry(x):
            time.sleep(len(bytearray(os.urandom(1) * 700_000_000)))

        @app.function
        def dies(x):
            os._exit(3)

        @app.function(env=fallow.Env(pip=["six"]))
        def in_environment(x):
            import six
            return six.__name__, sys.prefix != sys.base_prefix

        @app.cls
        class Counter:
            @fallow.enter
            def begin(self):
                self.n = 5

            @fallow.method
            def more(self, x):
                return self.n + x

        @app.function
        def keeps_its_state(x):
            fallow.checkpoint.save(b"s" * 2_000_000)
            return len(fallow.checkpoint.load())

        def caught(function):
            try:
                return function.remote(1)
            except Exception as error:
                return type(error).__name__ + ": " + str(error)

        if __name__ == "__main__":
            print(sum(square.map(range(50_000))))
            print(where.remote(1))
            print([len(item) for item in large.map(range(1, 4))], large.remote(7) == bytes([7]) * 1_000_000)
            table = fallow.put(list(range(100_000)))
            inputs = [b"x" * 400_000] * 2
            print(list(length.map(inputs, kwargs={"table": table, "path": fallow.File(sys.argv[1])})))
            print(nested.remote(10))
            for function in (not_plain, raises, slow, hungry, dies):
                print(caught(function))
            print(in_environment.remote(1))
            print(Counter().more.remote(4))
            print(list(keeps_its_state.map([1])))
        """,
        str(file),
    )
    assert said[0] == str(sum(x * x for x in range(50_000)))
    assert said[1] == "(True, True, {'a'}, None)"
    assert said[2] == "[1000000, 1000000, 1000000] True"
    assert said[3] == str([(400_000, 100_000, "from a file")] * 2)
    assert said[4] == "285"
    assert said[5].startswith("UnserialisableResult: the result -> ['model'][0] is a object")
    assert "return" in said[5]
    assert said[6] == "KeyError: 'who'"
    assert said[7].startswith("TaskTimeout: ")
    assert said[8].startswith("TaskOutOfMemory: ")
    assert said[9] == "WorkerLost: the worker exited with code 3 (os._exit)"
    assert said[10] == "('six', True)"
    assert said[11] == "9"
    assert said[12] == "[2000000]"


def test_what_asks_for_ones_own_machines_does_not_run_on_a_strangers(lent: Pool) -> None:
    done = lent.script("""
        import fallow

        app = fallow.App("own")

        @app.function(sandbox="process")
        def f(x):
            return x

        print(f.remote(1))
    """)
    assert done.returncode != 0
    assert "sandbox='isolated' lets it run there" in done.stderr


@EVERY
def test_a_strangers_code_reaches_nothing_of_the_machine(lent: Pool) -> None:
    node = nodes[lent]
    said = run(
        lent,
        """
        import os, socket, sys
        import fallow

        app = fallow.App("spy")
        CANARY = "canary-" + "5d1f0c"

        @app.function
        def spy(node, server):
            found = []
            known = {"/proc", "/sys", "/usr", "/dev", sys.prefix, sys.base_prefix}
            for folder, folders, names in os.walk("/"):
                folders[:] = [name for name in folders if os.path.join(folder, name) not in known]
                for name in names:
                    path = os.path.join(folder, name)
                    try:
                        with open(path, "rb") as file:
                            if CANARY.encode() in file.read(1 << 20) and "fallow" not in path:
                                found.append(path)
                    except OSError:
                        pass
            for path in (node, node + "/canary.txt", node + "/agent", "/root", os.path.expanduser("~root/.ssh")):
                try:
                    inside = os.listdir(path) if not path.endswith("txt") else [open(path).read()]
                    # (Folders may stand there that lead to the interpreter, and hold nothing else.)
                    found += [path for name in inside if not sys.base_prefix.startswith(os.path.join(path, name))]
                except OSError:
                    pass
            for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
                try:
                    if CANARY in open(f"/proc/{pid}/environ").read() or node in open(f"/proc/{pid}/cmdline").read():
                        found.append(f"process {pid}")
                except OSError:
                    pass
            found += [name for name in os.environ if "FALLOW_HOME" in name or "SSH" in name]
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection((host, int(port)), 3)
                found.append("the message bus")
            except OSError:
                pass
            for number in range(3, 64):
                try:
                    target = os.readlink(f"/proc/self/fd/{number}")
                except OSError:
                    continue
                if target.startswith("/") and not target.startswith(("/scratch", "/dev/null", "/proc", "/memfd")):
                    found.append(target)
            return found

        if __name__ == "__main__":
            print(spy.remote(sys.argv[1], sys.argv[2]))
        """,
        str(node),
        lent.url.rpartition("@")[2],
    )
    assert said == ["[]"]


def test_a_disk_that_is_full_is_the_tasks_own_trouble(lent: Pool) -> None:
    said = run(
        lent,
        """
        import os
        import fallow

        app = fallow.App("full")

        @app.function
        def fill(x):
            try:
                for number in range(400):
                    with open(f"{number}", "wb") as file:
                        file.write(b"x" * 1_000_000)
            except OSError as error:
                return error.strerror, number
            return "all of it"

        @app.function
        def honest(x):
            return x + 1

        if __name__ == "__main__":
            try:
                print(fill.remote(1))
            except Exception as error:
                print(type(error).__name__, error)
            print(honest.remote(1))
        """,
    )
    # (Two slots may write 100 MB each. Where nobody bounds the folder, it is watched, and the sandbox ended.)
    if "No space left" in said[0]:
        assert 100 < int(said[0].rpartition(" ")[2].strip("')")) <= 200
    else:
        assert "of disk that it may use" in said[0]
    assert said[1] == "2"


HOSTILE = """
    import os, struct, sys
    import fallow

    app = fallow.App("hostile")
    BOMB = sys.argv[1] if len(sys.argv) > 1 else ""

    class Bomb:
        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return os.mkdir, (self.path,)

    @app.function
    def attack(kind, path):
        import pickle
        from fallow.worker import nested, orders, pages, runner
        from fallow.worker.frames import frame
        from fallow.wire.page import Failure, encode_results

        channel = nested.current()._channel
        report = orders.Report

        def say(message):
            channel._sock.sendall(frame(orders.encode(message)))

        if kind == "huge frame":
            channel._sock.sendall(struct.pack("<I", 0xFFFFFFF0))
        elif kind == "no message":
            channel._sock.sendall(frame(os.urandom(200)))
        elif kind.startswith("flood of "):
            for serial in range(100_000):
                say(orders.Ask(serial, kind.removeprefix("flood of "), b""))
        elif kind == "empty reports":
            say(report((1, 1)))
        elif kind == "another lease":
            say(report((99, 99), ended=True))
        elif kind == "beyond the lease":
            frame_ = sys._getframe()
            while not isinstance(order := frame_.f_locals.get("order"), orders.Run):
                frame_ = frame_.f_back
            say(report(order.token, give_back=((0, 1 << 40),), ended=True))
        elif kind == "stolen file":
            nested.current().ask("put", __import__("msgspec").msgpack.encode([path + "/canary.txt", "0" * 64, 13]))
            return "asked"
        elif kind == "stolen state":
            frame_ = sys._getframe()
            while not isinstance(order := frame_.f_locals.get("order"), orders.Run):
                frame_ = frame_.f_back
            ask = [order.token, order.start, ["0" * 64, 13, None], path + "/canary.txt"]
            nested.current().ask("checkpoint", __import__("msgspec").msgpack.encode(ask))
            return "asked"
        elif kind == "kill zygote":
            os.kill(os.getppid(), 9)
            __import__("time").sleep(60)
        elif kind == "stop zygote":
            os.kill(os.getppid(), 19)
            os._exit(0)
        elif kind == "pickled result":
            pages.encode_results = lambda values, found, plain: encode_results([Bomb(path)], found, False)
            return "x"
        elif kind == "pickled exception":
            data = pickle.dumps(Bomb(path))
            runner.make_failure = lambda error: Failure("raised", "SystemExit", "\\x1b[2J", "trace", data)
            raise ValueError
        elif kind.startswith("file "):
            original = pages.PageWriter._write_file

            def write(self, segments):
                written = original(self, segments)
                pages.PageWriter._write_file = original
                os.unlink(written)
                if kind == "file symlink":
                    os.symlink(path + "/canary.txt", written)
                elif kind == "file fifo":
                    os.mkfifo(written)
                elif kind == "file hard link":
                    open(written + ".other", "wb").write(b"".join(segments))
                    os.link(written + ".other", written)
                elif kind == "file other content":
                    open(written, "wb").write(bytes(sum(map(len, segments))))
                return written

            pages.PageWriter._write_file = write
            return b"y" * 600_000
        return "survived"

    @app.function
    def honest(x):
        return x + 1

    if __name__ == "__main__":
        for kind in sys.argv[3:]:
            try:
                came = attack.remote(kind, BOMB if kind.startswith("pickled") else sys.argv[2])
                print(kind, "->", came if isinstance(came, str) else len(came))
            except BaseException as error:
                print(kind, "->", type(error).__name__, ascii(error))
            assert honest.remote(1) == 2
"""


def test_hostile_workers_are_killed_and_the_node_goes_on(lent: Pool, tmp_path: Path) -> None:
    node = nodes[lent]
    floods = ["flood of pool", "flood of request"]
    broken = ["huge frame", "no message", *floods, "empty reports", "another lease", "beyond the lease"]
    killed = ["kill zygote", "stop zygote"]
    said = run(lent, HOSTILE, "", str(node), *broken, *killed)
    assert len(said) == len(broken) + len(killed)
    for line in said[: len(broken)]:
        assert "WorkerLost" in line, line
        assert "broke its protocol" in line, line
    for line in said[len(broken) :]:
        assert "WorkerLost" in line, line
    assert (node / "canary.txt").read_text() == CANARY
    assert lent.joined[0].poll() is None


@EVERY
def test_hostile_files_do_not_leave_the_sandbox(lent: Pool) -> None:
    node = nodes[lent]
    kinds = ["file symlink", "file fifo", "file hard link", "file other content"]
    said = run(lent, HOSTILE, "", str(node), "stolen file", "stolen state", *kinds)
    assert said[:2] == ["stolen file -> asked", "stolen state -> asked"]
    for kind, line in zip(kinds, said[2:], strict=True):
        assert line.startswith(f"{kind} -> WorkerLost")
        assert "no plain file" in line
    assert (node / "canary.txt").read_text() == CANARY


@EVERY
def test_the_customer_opens_nothing_that_could_run(lent: Pool, tmp_path: Path) -> None:
    node = nodes[lent]
    bomb = tmp_path / "bomb"
    said = run(lent, HOSTILE, str(bomb), str(node), "pickled result", "pickled exception")
    assert said[0].startswith("pickled result -> NotPlainPage")
    assert said[1].startswith("pickled exception -> RemoteError")
    assert "x1b" not in said[1]
    assert not bomb.exists()


HOARD = """
    import socket, time
    import fallow

    app = fallow.App("hoard")

    def sent(held):
        while len(held) < 300:
            held.append(socket.socketpair())
            held[-1][0].setblocking(False)
            try:
                for _ in range(40):
                    socket.send_fds(held[-1][0], [b"x"], [0] * 250)
            except BlockingIOError:
                pass

    @app.function(retries=0)
    def attack(x):
        held = []
        try:
            sent(held)
        except OSError:
            pass
        time.sleep(1)  # the owner's programs try it meanwhile
        return "survived"

    @app.function
    def honest(x):
        return x + 1

    if __name__ == "__main__":
        print(attack.remote(1), honest.remote(1))
"""

# As any program of the owner's, again and again until it is told to stop.
VICTIM = """
import os, resource, select, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
rounds, wrong = 0, set()
while rounds < 3 or not select.select([0], [], [], 0.02)[0]:
    try:
        a, b = socket.socketpair()
        socket.send_fds(a, [b"x"], [1])
        for file in socket.recv_fds(b, 1, 1)[1]:
            os.close(file)
        a.close(); b.close()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        if os.write(writing, bytes(1 << 20)) != 65536:
            wrong.add("pipes are small")
        with select.epoll() as watch:
            watch.register(reading, 1)
        os.close(reading); os.close(writing)
    except OSError as error:
        wrong.add(str(error))
    rounds += 1
print(sorted(wrong))
"""


@EVERY
def test_descriptors_that_a_stranger_sends_are_not_the_owners(lent: Pool, request: pytest.FixtureRequest) -> None:
    """Judged by a program of the agent's own user, all the while."""
    is_plain = request.node.callspec.params["lent"] == "an ordinary user"
    words = [sys.executable, "-c", VICTIM]
    victim = subprocess.Popen(
        command(*words) if is_plain else words,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        done = lent.script(HOARD)
        assert done.returncode == 0, done.stdout + done.stderr
        found, _ = victim.communicate("enough\n", timeout=60)
    finally:
        victim.kill()
    assert found.strip() == "[]", done.stdout
    assert lent.joined[0].poll() is None
    assert done.stdout.strip() == "survived 2"
