"""The machine's end of connections that a program in gVisor makes: `carrier` inside asks for a socket for each."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

CONNECTIONS_WAITING = 64


class WayOut:
    """One sandbox's. `inner`: the carrier's channel, to be sent inside and closed here."""

    def __init__(self, folder: str, listener: int) -> None:
        """`folder`: nobody's but the agent's. `listener`: as of Program; what it is sent accepts what the carrier asks
        for. Raises OSError."""
        self._path = os.path.join(folder, "way")
        self._channel, self.inner = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._path)
            listening.listen(CONNECTIONS_WAITING)
            with socket.socket(fileno=os.dup(listener)) as outside:
                socket.send_fds(outside, [b"+"], [listening.fileno()])
        self._thread = threading.Thread(target=self._run, name="sandbox-way", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Whatever else is said in there: a socket for each byte, or none where nobody accepts any more."""
        with contextlib.suppress(OSError):
            while self._channel.recv(1):
                with socket.socket(socket.AF_UNIX) as connected:
                    try:
                        connected.setblocking(False)  # who does not accept is not waited for
                        connected.connect(self._path)
                    except OSError:
                        self._channel.sendall(b"-")
                        continue
                    connected.setblocking(True)
                    socket.send_fds(self._channel, [b"+"], [connected.fileno()])

    def close(self) -> None:
        """After the sandbox has ended."""
        self.inner.close()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._channel.close()
