"""`fallow store`: the commands that move, upgrade, back up and restore what a pool knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fallow.cli.options import Home, set_home

store_app = typer.Typer(help="Move, upgrade, back up and restore what a pool knows.", no_args_is_help=True)

# The variables are those of `fallow up`: URLs with a secret in them are nobody else's to see.
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", envvar="FALLOW_UP_STORE", metavar="URL", help="The store; default: SQLite in the home folder."
    ),
]
Blobs = Annotated[
    str,
    typer.Option(
        "--blobs", envvar="FALLOW_UP_BLOBS", metavar="FOLDER|URL", help="The blobs; default: in the home folder."
    ),
]
WithBlobs = Annotated[bool, typer.Option("--with-blobs/--no-blobs", help="Whether blobs are copied too.")]


@store_app.command("migrate")
def store_migrate(
    target: Annotated[str, typer.Option("--to", envvar="FALLOW_UP_STORE", metavar="URL", help="An empty store.")],
    source: Annotated[str, typer.Option("--from", metavar="URL", help="Default: SQLite in the home folder.")] = "",
    blobs_to: Annotated[
        str,
        typer.Option(
            envvar="FALLOW_UP_BLOBS",
            metavar="FOLDER|URL",
            help="Put the blobs there too; default: they stay where they are.",
        ),
    ] = "",
    blobs_from: Annotated[
        str, typer.Option(metavar="FOLDER|URL", help="Where they are; default: in the home folder.")
    ] = "",
    home: Home = None,
) -> None:
    """Move a pool to another store while its coordinators are stopped. What was cut short is run again.

    \b
    Examples:
      fallow store migrate --from sqlite:////var/lib/fallow/pool.db --to postgresql://fallow:SECRET@db/fallow
      fallow store migrate --to postgresql://fallow:SECRET@db/fallow \\
        --blobs-to 's3://BUCKET/PREFIX?endpoint=https://s3.example.org'
    """
    set_home(home)
    from fallow.cli.store import run_migrate

    run_migrate(source, target, blobs_from, blobs_to)


@store_app.command("upgrade")
def store_upgrade(store: StoreUrl = "", home: Home = None) -> None:
    """Bring the store's schema up to date while its coordinators are stopped.

    \b
    Example:
      fallow store upgrade --store postgresql://fallow:SECRET@db/fallow
    """
    set_home(home)
    from fallow.cli.store import run_upgrade

    run_upgrade(store)


@store_app.command("backup")
def store_backup(
    file: Annotated[Path, typer.Option("--to", metavar="FILE", help="Blobs go to FILE.blobs, only new ones.")],
    store: StoreUrl = "",
    blobs: Blobs = "",
    with_blobs: WithBlobs = True,
    home: Home = None,
) -> None:
    """Write all that the pool knows, as of one moment, to a file, while it works on.

    \b
    Example:
      fallow store backup --to /mnt/safe/pool.backup
    """
    set_home(home)
    from fallow.cli.store import run_backup

    run_backup(store, blobs, file, with_blobs)


@store_app.command("restore")
def store_restore(
    file: Annotated[Path, typer.Option("--from", metavar="FILE", help="As `fallow store backup` wrote it.")],
    store: StoreUrl = "",
    blobs: Blobs = "",
    with_blobs: WithBlobs = True,
    home: Home = None,
) -> None:
    """Fill an empty store, and its blobs, from a backup.

    \b
    Example:
      fallow store restore --from /mnt/safe/pool.backup --store postgresql://fallow:SECRET@db/fallow
    """
    set_home(home)
    from fallow.cli.store import run_restore

    run_restore(file, store, blobs, with_blobs)
