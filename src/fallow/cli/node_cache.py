"""`fallow node cache`: by the agent where one runs, since it knows what is in use; else directly."""

from __future__ import annotations

import time
from typing import Any

from fallow.agent.control import Caches as CachesQuestion
from fallow.agent.control import ClearCaches
from fallow.cli.node_client import agent_home, ask_agents, running_agents
from fallow.cli.node_show import print_caches
from fallow.cli.show import print_json
from fallow.core.quantities import read_time, size_words
from fallow.model.errors import SettingError


def list_caches(as_json: bool) -> None:
    for body in _looked():
        if as_json:
            print_json(body)
        else:
            print_caches(body, time.time())


def clear_caches(older: str, everything: bool, as_json: bool) -> None:
    """Raises SettingError unless it is said what may go."""
    if bool(older) == everything:
        raise SettingError("say what may go: --older TIME (such as --older 7d), or --all.")
    try:
        older_s = read_time(older) if older else 0.0
    except ValueError as error:
        raise SettingError(f"--older {older}: {error}.") from None
    if running_agents():
        bodies = [answer.body for answer in ask_agents(ClearCaches(older_s=older_s))]
    else:
        bodies = [_clear_directly(older_s)]
    for body in bodies:
        if as_json:
            print_json(body)
            continue
        left = f" {body['in_use']} in use stay." if body["in_use"] else ""
        print(f"Removed {body['removed']}, {size_words(body['freed_bytes'])}.{left}")


def _looked() -> list[dict[str, Any]]:
    if running_agents():
        return [answer.body for answer in ask_agents(CachesQuestion())]
    caches, limit = _caches()
    from fallow.agent.report import cache_report

    return [cache_report(caches.look(time.time()), limit)]


def _clear_directly(older_s: float) -> dict[str, Any]:
    from fallow.agent.report import cache_report

    caches, limit = _caches()
    removed, left = caches.clear(older_s, time.time())
    freed = sum(one.size_bytes for one in removed)
    report = cache_report(caches.look(time.time()), limit)
    return {**report, "removed": len(removed), "freed_bytes": freed, "in_use": len(left)}


def _caches() -> tuple[Any, int]:
    """Of a home where no agent runs: nothing is in use."""
    from fallow.agent.caches import Caches
    from fallow.agent.settings import load_settings, settings_path

    home = agent_home()
    return Caches(home, frozenset), load_settings(settings_path(home)).share.disk_bytes
