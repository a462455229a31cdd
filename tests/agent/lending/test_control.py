"""The owner's door: answers, refuses in words, and is nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from fallow.agent.control import ControlServer, NotRunning, Pause, Question, Status, agent_folders, ask_agent
from fallow.model.errors import SettingError


async def answer(question: Question) -> dict[str, Any]:
    if isinstance(question, Pause):
        raise SettingError("not today.")
    return {"state": "idle"}


async def test_questions_and_answers(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, answer)
    await server.start()
    try:
        assert await asyncio.to_thread(ask_agent, tmp_path, Status()) == {"state": "idle"}
        with pytest.raises(SettingError, match="not today"):
            await asyncio.to_thread(ask_agent, tmp_path, Pause(for_s=3))
        where = json.loads((tmp_path / "control.json").read_text())
        assert stat.S_IMODE(os.stat(where["unix"]).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "control.json").st_mode) == 0o600
    finally:
        await server.close()
    with pytest.raises(NotRunning):
        ask_agent(tmp_path, Status())


async def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("path-" * 20)
    folder.mkdir(parents=True)
    server = ControlServer(folder, answer)
    await server.start()
    try:
        assert await asyncio.to_thread(ask_agent, folder, Status()) == {"state": "idle"}
        elsewhere = Path(json.loads((folder / "control.json").read_text())["unix"])
        assert stat.S_IMODE(os.stat(elsewhere.parent).st_mode) == 0o700
    finally:
        await server.close()
    assert not elsewhere.parent.exists()


async def test_over_tcp_a_token_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    server = ControlServer(tmp_path, answer)
    await server.start()
    try:
        assert await asyncio.to_thread(ask_agent, tmp_path, Status()) == {"state": "idle"}
        path = tmp_path / "control.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "token": "guessed"}))
        with pytest.raises(SettingError, match="wrong token"):
            await asyncio.to_thread(ask_agent, tmp_path, Status())
    finally:
        await server.close()


@pytest.mark.parametrize(
    "sent", [b"\x00\x00\x00\x02{}", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x05hello", b'\x00\x00\x00\x10{"ask":"rm -rf"}']
)
async def test_garbage_is_refused_and_the_door_stays_open(tmp_path: Path, sent: bytes) -> None:
    server = ControlServer(tmp_path, answer)
    await server.start()
    try:
        where = json.loads((tmp_path / "control.json").read_text())["unix"]
        reader, writer = await asyncio.open_unix_connection(where)
        writer.write(sent)
        heard = await asyncio.wait_for(reader.read(), 30)
        assert b'"error":"' in heard
        writer.close()
        assert await asyncio.to_thread(ask_agent, tmp_path, Status()) == {"state": "idle"}
    finally:
        await server.close()


def test_folders_of_agents(tmp_path: Path) -> None:
    assert agent_folders(tmp_path / "none") == []
    for folder in (tmp_path, tmp_path / "10", tmp_path / "2"):
        folder.mkdir(exist_ok=True)
        (folder / "agent.lock").touch()
    (tmp_path / "3").mkdir()
    assert agent_folders(tmp_path) == [tmp_path, tmp_path / "2", tmp_path / "10"]
