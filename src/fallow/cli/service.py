"""`fallow service ...`: have this machine work for a pool whenever it is on."""

from __future__ import annotations

from typing import Annotated

import typer

from fallow.cli.options import Home, Json, set_home

service_app = typer.Typer(
    name="service",
    help="Have this machine lend itself whenever it is on (systemd, launchd, WSL2).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@service_app.command()
def install(
    address: Annotated[
        str, typer.Argument(metavar="[TOKEN@HOST:PORT]", help="The pool; nothing: the one installed before.")
    ] = "",
    from_file: Annotated[str, typer.Option("--from", metavar="FILE", help="Read the address there; - for stdin.")] = "",
    name: Annotated[str, typer.Option(help="How the node is called; default: the host's name.")] = "",
    slots: Annotated[int, typer.Option(min=0, help="Tasks at a time; 0: as the settings say.")] = 0,
    own_pool: Annotated[bool, typer.Option("--own-pool", help="All its customers are you: no sandbox.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what would be written, and end.")] = False,
    home: Home = None,
) -> None:
    """Install and start the service of this user. The pool's token is kept in a file that only you can read.

    \b
    Examples:
      fallow service install 3f9c...@192.168.1.10:7461
      fallow service install --show 3f9c...@192.168.1.10:7461
    """
    set_home(home)
    from fallow.cli.service_manager import Wanted, install_service

    install_service(Wanted(address, from_file, name, slots, own_pool), show)


@service_app.command()
def uninstall(home: Home = None) -> None:
    """Stop the service and remove it. Settings, keys and caches stay.

    \b
    Example:
      fallow service uninstall
    """
    set_home(home)
    from fallow.cli.service_manager import uninstall_service

    uninstall_service()


@service_app.command()
def status(as_json: Json = False, home: Home = None) -> None:
    """Say whether the service is installed and runs.

    \b
    Example:
      fallow service status
    """
    set_home(home)
    from fallow.cli.service_manager import show_service

    show_service(as_json)


@service_app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 50,
    home: Home = None,
) -> None:
    """Show what the service printed.

    \b
    Example:
      fallow service logs --follow
    """
    set_home(home)
    from fallow.cli.service_manager import show_logs

    raise typer.Exit(show_logs(follow, lines))
