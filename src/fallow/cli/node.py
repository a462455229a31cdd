"""`fallow node ...`: what the owner of a machine sees of its agents, and tells them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from fallow.cli.options import Home, Json, set_home

node_app = typer.Typer(
    name="node",
    help="This machine as it works for a pool: state, limits, caches; pause and resume.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
cache_app = typer.Typer(name="cache", help="Environments, code and data that are kept here.", rich_markup_mode=None)
node_app.add_typer(cache_app)

Agent = Annotated[int, typer.Option("--agent", min=0, help="Which of several agents of this home; 0: all.")]


@node_app.command()
def status(agent: Agent = 0, as_json: Json = False, home: Home = None) -> None:
    """Show what this machine does for the pool, why or why not, and what it has done.

    \b
    Examples:
      fallow node status
      fallow node status --json
    """
    set_home(home)
    from fallow.agent.control import Status

    _show_status(Status(), agent, as_json)


@node_app.command()
def pause(
    for_time: Annotated[str, typer.Option("--for", metavar="TIME", help="Such as '2 h'; nothing: until resume.")] = "",
    gpu: Annotated[int, typer.Option(min=-1, help="This GPU alone, as `status` numbers them; -1: everything.")] = -1,
    agent: Agent = 0,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Stop what runs at once, and take no more.

    What tasks have finished is handed in, the rest runs elsewhere.

    \b
    Examples:
      fallow node pause
      fallow node pause --for 2h
      fallow node pause --gpu 0
    """
    set_home(home)
    from fallow.agent.control import Pause
    from fallow.core.quantities import read_time
    from fallow.model.errors import SettingError

    try:
        for_s = read_time(for_time) if for_time else 0.0
    except ValueError as error:
        raise SettingError(f"--for {for_time}: {error}.") from None
    if for_time and for_s <= 0:
        raise SettingError(f"--for {for_time}: that is no time at all.")
    _show_status(Pause(for_s=for_s, gpu=None if gpu < 0 else gpu), agent, as_json)


@node_app.command()
def resume(agent: Agent = 0, as_json: Json = False, home: Home = None) -> None:
    """Work again, after `pause` or `drain`, as far as the settings allow.

    \b
    Example:
      fallow node resume
    """
    set_home(home)
    from fallow.agent.control import Resume

    _show_status(Resume(), agent, as_json)


@node_app.command()
def drain(agent: Agent = 0, as_json: Json = False, home: Home = None) -> None:
    """Finish what runs and take no more, until `resume`.

    \b
    Example:
      fallow node drain
    """
    set_home(home)
    from fallow.agent.control import Drain

    _show_status(Drain(), agent, as_json)


@node_app.command()
def limits(
    changes: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Set these.")] = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Show every setting and what is in force, or change some: all of them or, if one is wrong, none.

    \b
    Examples:
      fallow node limits
      fallow node limits share.memory='8 GB' owner.hours='mon-fri 18:00-08:00'
      fallow node limits owner.hours=
    """
    set_home(home)
    _limits(changes or [], as_json)


@node_app.command("set")
def set_limits(
    changes: Annotated[list[str], typer.Argument(metavar="SECTION.KEY=VALUE...", help="As `limits` lists them.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Change settings: the same as `fallow node limits SECTION.KEY=VALUE`.

    \b
    Example:
      fallow node set gpu.power_limit='200 W' share.up='5 MB/s'
    """
    set_home(home)
    _limits(changes, as_json)


@node_app.command()
def reload(as_json: Json = False, home: Home = None) -> None:
    """Have the settings file read again, after you edited it.

    \b
    Example:
      fallow node reload
    """
    set_home(home)
    from fallow.agent.control import Reload
    from fallow.cli.node_client import ask_agents

    answers = ask_agents(Reload())
    if as_json:
        _print_json([answer.body for answer in answers])
        return
    for answer in answers:
        print(f"{answer.body['node']}: the settings in {answer.body['settings']['file']} are in force.")


@node_app.command()
def sandbox(as_json: Json = False, home: Home = None) -> None:
    """Try what keeps tasks away from what is yours: what works here, what does not, and what would help.

    The agent tries it where one runs: a service may have more at hand than a terminal.

    \b
    Example:
      fallow node sandbox
    """
    set_home(home)
    from fallow.agent.control import ProbeSandbox
    from fallow.agent.report import probe_report
    from fallow.agent.settings import load_settings, settings_path
    from fallow.cli.node_client import agent_home, ask_agents, running_agents
    from fallow.cli.node_show import print_probes

    if running_agents():
        body = ask_agents(ProbeSandbox())[0].body
    else:
        body = probe_report(load_settings(settings_path(agent_home())).sandbox)
    if as_json:
        _print_json(body)
    else:
        print_probes(body)


@node_app.command()
def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    agent: Annotated[int, typer.Option("--agent", min=1, help="Which of several agents of this home.")] = 1,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Watch this machine in the whole terminal, with plots; keys pause, resume and drain it.

    \b
    Examples:
      fallow node top
      fallow node top --once --json
    """
    set_home(home)
    from fallow.cli.node_top import run_node_top

    run_node_top(interval, once, agent, as_json)


@cache_app.command("list")
def cache_list(as_json: Json = False, home: Home = None) -> None:
    """List what is kept, what was used last first.

    \b
    Example:
      fallow node cache list
    """
    set_home(home)
    from fallow.cli.node_cache import list_caches

    list_caches(as_json)


@cache_app.command("clear")
def cache_clear(
    older: Annotated[str, typer.Option(metavar="TIME", help="Only what was not used for so long, such as 7d.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All that is not in use.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Remove what is kept and not in use.

    \b
    Examples:
      fallow node cache clear --older 7d
      fallow node cache clear --all
    """
    set_home(home)
    from fallow.cli.node_cache import clear_caches

    clear_caches(older, everything, as_json)


def _show_status(question: Any, agent: int, as_json: bool) -> None:
    from fallow.cli.node_client import ask_agents
    from fallow.cli.node_show import status_lines

    answers = ask_agents(question, agent)
    if as_json:
        _print_json([{"agent": answer.number, **answer.body} for answer in answers])
        return
    for answer in answers:
        print("\n".join(status_lines(answer.body, time.time(), answer.number, len(answers) > 1)))


def _limits(changes: list[str], as_json: bool) -> None:
    from fallow.agent.control import Reload
    from fallow.agent.report import limits_in_force
    from fallow.agent.settings import change_settings, load_settings, settings_path
    from fallow.cli.node_client import agent_home, ask_agents, running_agents
    from fallow.cli.node_show import print_limits

    file = settings_path(agent_home())
    settings = change_settings(file, changes) if changes else load_settings(file)
    running = running_agents()
    if changes and running:
        ask_agents(Reload())
    shown = limits_in_force(settings)
    if as_json:
        _print_json({"file": str(file), "limits": shown, "agents": len(running)})
        return
    if not changes:
        print_limits(shown, str(file))
        return
    from fallow.agent.settings import find_key
    from fallow.cli.node_show import value_words

    for change in changes:
        key = find_key(change.partition("=")[0].strip())
        print(f"{key.path} = {value_words(shown[key.path])}")
    print(f"Written to {file}; {'in force now' if running else 'in force when an agent starts'}.")


def _print_json(value: Any) -> None:
    from fallow.cli.show import print_json

    print_json(value)
