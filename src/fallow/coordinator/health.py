"""Liveness and readiness over HTTP, for whoever starts coordinators and routes to them.

    GET /healthz   200 while the process turns: no answer, or 503, means that it should be started again.
    GET /readyz    200 while it can serve: connected, its session valid, its store taking writes, not leaving.
                   503 with the reasons otherwise; it may come back by itself.

Both answer JSON. A few lines of HTTP of its own: a library for it would cost every start more than this does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Sequence

from fallow.model.errors import SettingError

STALLED_S = 5.0
"""An event loop whose last tick is longer ago does not turn as it should."""
REQUEST_LIMIT_BYTES = 8192
REQUEST_LIMIT_S = 5.0


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT. Raises SettingError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not int(port) < 65536:
        raise SettingError(f"health cannot be served on {text!r}: expected HOST:PORT, such as 127.0.0.1:8080.")
    return host.strip("[]"), int(port)


class HealthServer:
    """`reasons`: why the coordinator is not ready; `ticked`: call it at every tick of the coordinator."""

    def __init__(self, reasons: Callable[[], Sequence[str]], facts: Callable[[], dict[str, object]]) -> None:
        self._reasons = reasons
        self._facts = facts
        self._loop = asyncio.get_running_loop()
        self._ticked_at = self._loop.time()
        self._server: asyncio.Server | None = None

    def ticked(self) -> None:
        self._ticked_at = self._loop.time()

    async def start(self, address: str) -> None:
        """Raises SettingError in words."""
        host, port = split_address(address)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=REQUEST_LIMIT_BYTES)
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error)
            raise SettingError(f"health cannot be served on {address}: {words}.") from None

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        """(status, body) of a GET."""
        silent_s = self._loop.time() - self._ticked_at
        alive = silent_s < STALLED_S
        if path == "/healthz":
            words = [] if alive else [f"the last tick was {silent_s:.0f} s ago"]
            return (200 if alive else 503), {"alive": alive, "reasons": words, **self._facts()}
        if path == "/readyz":
            reasons = list(self._reasons())
            return (503 if reasons else 200), {"ready": not reasons, "reasons": reasons, **self._facts()}
        return 404, {"error": "there are /healthz and /readyz"}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(REQUEST_LIMIT_S):
                head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode("latin-1").split()
                if len(head) == 3 and head[0] in ("GET", "HEAD"):
                    status, body = self.answer(head[1].partition("?")[0])
                else:
                    status, body = 400, {"error": "only GET is understood"}
                data = json.dumps(body).encode() + b"\n"
                words = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}[status]
                writer.write(
                    f"HTTP/1.1 {status} {words}\r\nContent-Type: application/json\r\nConnection: close\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n".encode()
                    + (b"" if head[0] == "HEAD" else data)
                )
                await writer.drain()
        writer.close()
