"""Finds the agents of this machine's owner and asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from fallow.agent.control import NotRunning, Question, agent_folders, ask_agent
from fallow.model.errors import SettingError
from fallow.wire.address import home_dir


class Answered(Struct, frozen=True):
    """What one agent said. `number`: which of those that share the home, from 1."""

    number: int
    folder: Path
    body: dict[str, Any]


def agent_home() -> Path:
    return home_dir() / "agent"


def ask_agents(question: Question, number: int = 0) -> list[Answered]:
    """Ask every agent of the home that runs, or the one of that number. Raises SettingError in words when none does."""
    home = agent_home()
    folders = agent_folders(home)
    answers = []
    for folder in folders:
        at = 1 if folder == home else int(folder.name)
        if number and at != number:
            continue
        try:
            answers.append(Answered(at, folder, ask_agent(folder, question)))
        except NotRunning:
            continue
    if answers:
        return answers
    if number:
        raise SettingError(f"agent {number} of {home} does not run. `fallow node status` shows those that do.")
    raise SettingError(_none_words(home, bool(folders)))


def running_agents() -> list[Path]:
    """Folders of the agents that answer."""
    from fallow.agent.control import Status

    try:
        return [answer.folder for answer in ask_agents(Status())]
    except SettingError:
        return []


def _none_words(home: Path, lived: bool) -> str:
    where = f"No agent runs here (looked in {home}"
    where += "; one ran earlier)." if lived else ")."
    return (
        f"{where} Start one with `fallow join TOKEN@HOST:PORT`, or have it run always with `fallow service install`. "
        "If it runs with another home, name that with --home."
    )
