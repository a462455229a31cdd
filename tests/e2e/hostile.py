"""Hostile customers' scripts, and a program of the owner's that must not suffer from them."""

from __future__ import annotations

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
