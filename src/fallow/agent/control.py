"""The agent's door for its owner: a socket in its folder that only the owner can open, one question a connection.

A Unix socket (0600 in a 0700 folder) where there are such; else TCP on loopback with a token. `control.json` beside it
says which, since the folder's path may be too long for a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import shutil
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fallow.model.errors import FallowError, SettingError
from fallow.wire.address import write_private

log = logging.getLogger("fallow.agent")

WHERE_FILE = "control.json"
SOCKET_FILE = "control.sock"
PATH_LIMIT = 100
"""Bytes of a Unix socket's path; the system's own limit is 104 or 108."""
MESSAGE_LIMIT = 4 << 20
ANSWER_WITHIN_S = 30.0
ASK_WITHIN_S = 10.0
ASKERS_LIMIT = 32


class Ask(Struct, tag_field="ask", frozen=True):
    """Base of what the owner can ask for."""

    token: str = ""


class Status(Ask, tag="status", frozen=True):
    """What runs, and why or why not."""


class Pause(Ask, tag="pause", frozen=True):
    """Run nothing; 0: until `resume`. gpu: run nothing on this one alone, by its place in the status; None: on all."""

    for_s: float = 0.0
    gpu: int | None = None


class Resume(Ask, tag="resume", frozen=True):
    """End a pause or a drain."""


class Drain(Ask, tag="drain", frozen=True):
    """Finish what runs and take no more."""


class Reload(Ask, tag="reload", frozen=True):
    """Read the settings file again."""


class Caches(Ask, tag="caches", frozen=True):
    """List what is kept."""


class ClearCaches(Ask, tag="clear_caches", frozen=True):
    """Remove what was not used for `older_s` and nobody uses now."""

    older_s: float = 0.0


class ProbeSandbox(Ask, tag="sandbox", frozen=True):
    """Try what keeps the work apart."""


Question = Status | Pause | Resume | Drain | Reload | Caches | ClearCaches | ProbeSandbox


class Answer(Struct, frozen=True):
    """`error`: words for the owner; then there is no body."""

    body: dict[str, Any] = {}
    error: str = ""


_question = msgspec.json.Decoder(Question)
_answer = msgspec.json.Decoder(Answer)
_LENGTH = struct.Struct("!I")


class ControlServer:
    """Serves `answer` until it is closed. Refuses in words whatever cannot be read."""

    def __init__(self, folder: Path, answer: Callable[[Question], Awaitable[dict[str, Any]]]) -> None:
        self._folder = folder
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._token = ""
        self._private: Path | None = None
        """A folder of our own for the socket, where the agent's path is too long."""
        self._socket: Path | None = None
        self._askers = 0

    async def start(self) -> None:
        """Raises SettingError where no socket can be had."""
        try:
            where = await (self._start_unix() if hasattr(socket, "AF_UNIX") else self._start_tcp())
            write_private(self._folder / WHERE_FILE, json.dumps({**where, "pid": os.getpid()}))
        except OSError as error:
            await self.close()
            raise SettingError(f"no control socket in {self._folder}: {error.strerror or error}.") from None

    async def _start_unix(self) -> dict[str, Any]:
        path = self._folder / SOCKET_FILE
        if len(os.fsencode(path)) > PATH_LIMIT:
            self._private = Path(tempfile.mkdtemp(prefix="fallow-node-"))
            path = self._private / SOCKET_FILE
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            os.chmod(path, 0o600)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        except BaseException:
            listener.close()
            raise
        self._socket = path
        return {"unix": str(path)}

    async def _start_tcp(self) -> dict[str, Any]:
        self._token = secrets.token_hex(16)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return {"tcp": self._server.sockets[0].getsockname()[1], "token": self._token}

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for path in (self._socket, self._folder / WHERE_FILE):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._askers += 1
        try:
            answer = await self._answered(reader)
            body = msgspec.json.encode(answer)
            writer.write(_LENGTH.pack(len(body)) + body)
            await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass  # whoever asked has gone
        finally:
            self._askers -= 1
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader) -> Answer:
        if self._askers > ASKERS_LIMIT:
            return Answer(error="the agent is asked too much at once; try again.")
        async with asyncio.timeout(ASK_WITHIN_S):
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MESSAGE_LIMIT:
                return Answer(error="that question is too long.")
            data = await reader.readexactly(length)
        try:
            question = _question.decode(data)
        except msgspec.DecodeError as error:
            return Answer(error=f"the agent does not know this question ({error}): is it of another version?")
        if self._token and not hmac.compare_digest(question.token, self._token):
            return Answer(error="wrong token.")
        try:
            return Answer(await self._answer(question))
        except FallowError as error:
            return Answer(error=str(error))
        except Exception as error:
            log.exception("a question of the owner's failed")
            return Answer(error=f"the agent failed to answer: {type(error).__name__}: {error}")


class NotRunning(FallowError):
    """No agent lives in that folder."""


def ask_agent(folder: Path, question: Question) -> dict[str, Any]:
    """Ask the agent that lives in this folder. Blocks. Raises NotRunning, or SettingError with the agent's words."""
    try:
        where = json.loads((folder / WHERE_FILE).read_text())
    except (OSError, ValueError):
        raise NotRunning(f"no agent runs in {folder}.") from None
    try:
        with _connect(where) as connection:
            connection.settimeout(ANSWER_WITHIN_S)
            if token := str(where.get("token", "")):
                question = msgspec.structs.replace(question, token=token)
            body = msgspec.json.encode(question)
            connection.sendall(_LENGTH.pack(len(body)) + body)
            (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
            answer = _answer.decode(_receive(connection, min(length, MESSAGE_LIMIT)))
    except TimeoutError:
        raise SettingError(f"the agent in {folder} does not answer (pid {where.get('pid')}).") from None
    except (OSError, EOFError):
        raise NotRunning(f"no agent runs in {folder} (the last one ended without a word).") from None
    except msgspec.DecodeError as error:
        raise SettingError(f"the agent in {folder} answered something unreadable: {error}.") from None
    if answer.error:
        raise SettingError(answer.error)
    return answer.body


def _connect(where: dict[str, Any]) -> socket.socket:
    if "tcp" in where:
        return socket.create_connection(("127.0.0.1", int(where["tcp"])), ASK_WITHIN_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ASK_WITHIN_S)
    try:
        connection.connect(str(where.get("unix", "")))
    except BaseException:
        connection.close()
        raise
    return connection


def _receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def agent_folders(agent_home: Path) -> list[Path]:
    """Folders of agents that live or have lived in this home: the home itself, then the numbered ones."""
    numbered = []
    with contextlib.suppress(OSError):
        numbered = sorted((entry for entry in agent_home.iterdir() if entry.name.isdigit()), key=lambda e: int(e.name))
    return [folder for folder in (agent_home, *numbered) if (folder / "agent.lock").exists()]
