"""`fallow node top`: this machine in the whole terminal, with live plots; lines or JSON where there is no terminal."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from typing import Any

from fallow.agent.control import Status
from fallow.cli.node_client import ask_agents
from fallow.cli.node_history import History
from fallow.cli.node_show import STATE_WORDS
from fallow.cli.show import count_words, print_json
from fallow.core.terminal import harmless
from fallow.sdk.progress import is_screen


def run_node_top(interval_s: float, once: bool, agent: int, as_json: bool) -> None:
    """Until q or Ctrl-C, or once. Raises SettingError where no agent runs."""
    body = ask_agents(Status(), agent)[0].body
    if once:
        if as_json:
            print_json(body)
        else:
            print(line_of(body, None))
        return
    if as_json or not is_screen(sys.stdout):
        _follow(interval_s, agent, as_json)
        return
    from fallow.cli.node_screen import NodeScreen

    threading.Thread(target=_end_with_terminal, daemon=True).start()
    NodeScreen(interval_s, agent, body).run()


def _end_with_terminal() -> None:
    """A terminal that is closed sends a signal to its own session alone: below `su` nobody would hear of it, and the
    screen would be drawn for ever."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    while found := poll.poll():
        if found[0][1] & select.POLLHUP:
            os._exit(129)
        if found[0][1] & select.POLLNVAL:  # a system that cannot tell
            return


def _follow(interval_s: float, agent: int, as_json: bool) -> None:
    history = History()
    while True:
        body = ask_agents(Status(), agent)[0].body
        history.add(body, time.monotonic())
        print(json.dumps(body) if as_json else line_of(body, history), flush=True)
        time.sleep(interval_s)


def line_of(body: dict[str, Any], history: History | None) -> str:
    """One look in one line."""
    state = STATE_WORDS.get(body["state"], body["state"])
    reason = f" ({body['reason']})" if body["reason"] else ""
    rate = history.last("tasks/s") if history is not None else None
    rates = f"  {count_words(rate)} tasks/s" if rate is not None else ""
    clock = time.strftime("%H:%M:%S")
    return f"{clock}  {body['node']}  {state}{harmless(reason)}  {body['busy_slots']}/{body['slots']} slots busy{rates}"
