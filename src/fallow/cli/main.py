"""The program `fallow`. Every command imports what it needs when it runs, so that `fallow --help` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fallow.cli.node import node_app
from fallow.cli.options import Home, Json, set_home
from fallow.cli.service import service_app
from fallow.cli.store_commands import store_app
from fallow.model.errors import NO_ROOM, FallowError
from fallow.wire.streams import fill_streams

app = typer.Typer(
    name="fallow",
    help="Run Python on computers that stand idle: one pool out of many machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

app.add_typer(node_app)
app.add_typer(service_app)
app.add_typer(store_app, name="store")


@app.command()
def up(
    listen: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Let other machines in: 0.0.0.0 for all interfaces.")
    ] = "",
    slots: Annotated[int, typer.Option(min=0, help="Slots of the local node; 0: one per CPU.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the pool and of its local node; default: the host's.")] = "",
    store: Annotated[
        str, typer.Option(envvar="FALLOW_UP_STORE", help="URL of the store; default: SQLite in the home folder.")
    ] = "",
    home: Home = None,
    agent: Annotated[bool, typer.Option("--agent/--no-agent", help="Whether this machine works for the pool.")] = True,
    nats: Annotated[
        str,
        typer.Option(
            envvar="FALLOW_UP_NATS", metavar="TOKEN@HOST:PORT[,...]", help="Use NATS servers that run already."
        ),
    ] = "",
    coordinator_only: Annotated[
        bool, typer.Option("--coordinator-only", help="One more coordinator of a pool, with nothing beside it.")
    ] = False,
    blobs: Annotated[
        str,
        typer.Option(
            envvar="FALLOW_UP_BLOBS",
            metavar="FOLDER|URL",
            help="Where blobs lie: s3://BUCKET/PREFIX?endpoint=URL, or a folder.",
        ),
    ] = "",
    pool: Annotated[str, typer.Option(help="With --coordinator-only: name of the pool (--name: its own).")] = "",
    health: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Answer /healthz and /readyz there, over HTTP.")
    ] = "",
    account_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACCOUNT:jobs=N,slots=N",
            help="What an account's jobs may have at once ('*': each that is not named); may be repeated.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of the parts here.")] = False,
) -> None:
    """Run a pool on this machine: server, coordinator and a local node, until Ctrl-C.

    \b
    Examples:
      fallow up
      fallow up --listen 0.0.0.0 --slots 4
      fallow up --coordinator-only --name c1 --blobs /srv/fallow/blobs \\
        --store postgresql://fallow@db/fallow --nats 3f9c...@n1:4222,n2:4222,n3:4222

    Every user of a machine can read command lines: give addresses that hold secrets in the variables.
    """
    set_home(home)
    for variable in ("FALLOW_UP_STORE", "FALLOW_UP_NATS", "FALLOW_UP_BLOBS"):
        os.environ.pop(variable, None)  # no child, and no task of the local node, needs to know
    if coordinator_only:
        from fallow.cli.cluster import CoordinatorOnly, run_coordinator_only

        only = CoordinatorOnly(
            nats=nats, store=store, blobs=blobs, name=name, pool=pool, listen=listen, health=health, verbose=verbose,
            account_limits=tuple(account_limit or ()),
        )  # fmt: skip
        raise typer.Exit(run_coordinator_only(only))
    from fallow.cli.up import UpOptions, run_up

    options = UpOptions(
        listen=listen,
        slots=slots,
        name=name,
        store=store,
        agent=agent,
        nats=nats,
        blobs=blobs,
        health=health,
        account_limits=tuple(account_limit or ()),
        verbose=verbose,
    )
    raise typer.Exit(run_up(options))


@app.command()
def nats(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For agents, customers and coordinators.")],
    cluster: Annotated[str, typer.Option(metavar="HOST:PORT", help="For the other servers of a cluster.")] = "",
    route: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Another server's --cluster; may be repeated.")
    ] = None,
    home: Home = None,
) -> None:
    """Run one NATS server, by itself or of a cluster, until Ctrl-C. The pool's secret is the home's file `token`:
    copy it to the other servers' homes first.

    \b
    Example, on the first of three machines:
      fallow nats --listen n1:4222 --cluster n1:6222 --route n2:6222 --route n3:6222
    """
    set_home(home)
    from fallow.cli.cluster import NatsOptions, run_nats

    raise typer.Exit(run_nats(NatsOptions(listen=listen, cluster=cluster, routes=tuple(route or ()))))


@app.command()
def join(
    address: Annotated[
        str, typer.Argument(metavar="[TOKEN@HOST:PORT]", help="As `fallow up --listen` printed it.")
    ] = "",
    name: Annotated[str, typer.Option(help="How the node is called; default: the host's name.")] = "",
    slots: Annotated[int, typer.Option(min=0, help="Tasks at a time; 0: as the settings say, or one per CPU.")] = 0,
    from_file: Annotated[
        str, typer.Option("--from", metavar="FILE", help="Read the address there, unseen by others; - for stdin.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be lent, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    own_pool: Annotated[
        bool | None,
        typer.Option(
            "--own-pool/--strangers",
            help="Whose jobs come here: your own alone, as plain processes, or anybody's, in a sandbox. Default: "
            "strangers', unless the pool is one that you run on this machine.",
        ),
    ] = None,
    dedicated: Annotated[
        bool, typer.Option("--dedicated", help="The pool's alone: no owner is waited for. Kept in the settings.")
    ] = False,
    home: Home = None,
) -> None:
    """Let this machine work for a pool, until Ctrl-C.

    \b
    Examples:
      fallow join --dry-run 3f9c...@192.168.1.10:7461
      fallow join 3f9c...@192.168.1.10:7461
      fallow join --dedicated --own-pool 3f9c...@192.168.1.10:7461
    """
    set_home(home)
    from fallow.cli.join import JoinOptions, run_join

    raise typer.Exit(run_join(JoinOptions(address, name, slots, from_file, dry_run, as_json, own_pool, dedicated)))


@app.command()
def connect(
    address: Annotated[str, typer.Argument(metavar="TOKEN@HOST:PORT", help="Nothing: say what is connected.")] = "",
    home: Home = None,
) -> None:
    """Remember a pool: scripts and commands of this user run there from now on.

    \b
    Example:
      fallow connect 3f9c...@192.168.1.10:7461
    """
    set_home(home)
    from fallow.cli.join import run_connect

    raise typer.Exit(run_connect(address))


@app.command()
def disconnect(home: Home = None) -> None:
    """Forget the pool that `fallow connect` remembered.

    \b
    Example:
      fallow disconnect
    """
    set_home(home)
    from fallow.cli.join import run_disconnect

    raise typer.Exit(run_disconnect())


@app.command()
def jobs(
    active: Annotated[bool, typer.Option("--active", "-a", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first.

    \b
    Examples:
      fallow jobs
      fallow jobs --active --json
    """
    from fallow.cli.listings import show_jobs

    show_jobs(limit, active, as_json)


@app.command()
def nodes(
    all_nodes: Annotated[bool, typer.Option("--all", help="Also those that left or were lost.")] = False,
    as_json: Json = False,
) -> None:
    """List the nodes that work for the pool.

    \b
    Example:
      fallow nodes
    """
    from fallow.cli.listings import show_nodes

    show_nodes(all_nodes, as_json)


@app.command()
def status(
    job: Annotated[str, typer.Argument(help="Id, prefix of an id, or name of a job; nothing: the pool.")] = "",
    as_json: Json = False,
) -> None:
    """Show the pool, or one job in detail.

    \b
    Examples:
      fallow status
      fallow status job-k3v5 --json
    """
    from fallow.cli.listings import show_job, show_status

    if job:
        show_job(job, as_json)
    else:
        show_status(as_json)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="Id, prefix of an id, or name of a job.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Only the last lines; 0: all that are kept.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what a job's tasks printed, each line labelled with its node and task.

    \b
    Example:
      fallow logs square --follow
    """
    from fallow.cli.listings import show_logs

    show_logs(job, follow, tail, as_json)


@app.command()
def cancel(
    job: Annotated[list[str], typer.Argument(help="Ids, prefixes of ids, or names of jobs.")],
    reason: Annotated[str, typer.Option(help="For those who look at the job later.")] = "cancelled by `fallow cancel`",
    as_json: Json = False,
) -> None:
    """Cancel jobs: running tasks are ended, results so far are kept.

    \b
    Example:
      fallow cancel job-k3v5
    """
    from fallow.cli.listings import cancel_jobs

    raise typer.Exit(cancel_jobs(job, reason, as_json))


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="Id or name of a node, or name of a coordinator.")], as_json: Json = False
) -> None:
    """Let a node finish what it runs and take no more, before it is switched off. A coordinator hands its jobs to
    the others and ends.

    \b
    Examples:
      fallow drain lab-7
      fallow drain c2
    """
    from fallow.cli.listings import drain_anything

    drain_anything(name, as_json)


@app.command()
def resume(node: Annotated[str, typer.Argument(help="Id or name of a node.")], as_json: Json = False) -> None:
    """Let a drained node take work again.

    \b
    Example:
      fallow resume lab-7
    """
    from fallow.cli.listings import order_node

    order_node(node, "resume", as_json)


@app.command()
def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    as_json: Json = False,
) -> None:
    """Watch nodes, jobs and rates, until Ctrl-C.

    \b
    Examples:
      fallow top
      fallow top --once --json
    """
    from fallow.cli.top import run_top

    run_top(interval, once, as_json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="FILE.py[::FUNCTION|::CLASS.METHOD]", help="What to run.")] = "",
    env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requirements or pyproject.toml to install on the nodes.")
    ] = None,
    pip: Annotated[
        list[str] | None, typer.Option(metavar="REQUIREMENT", help="Install this on the nodes; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Command: where what the tasks make goes.")] = Path("out"),
    inputs: Annotated[str, typer.Option(metavar="FILE", help="Command: one argument a line; - for stdin.")] = "",
    files: Annotated[
        list[str] | None, typer.Option(metavar="GLOB|FOLDER", help="Command: input files; may be repeated.")
    ] = None,
    ship: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="FILE", help="Command: a file that every task needs; may be repeated."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that one task may take; 0: no limit.")] = 0.0,
    retries: Annotated[int, typer.Option(min=0, help="Times that a failed task runs again.")] = 0,
    cpu: Annotated[int, typer.Option(min=1, help="CPU slots of one task.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory of one task, such as 2GB.")] = "",
    max_nodes: Annotated[int, typer.Option(min=0, help="Most nodes to use; 0: all.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a Python file or one of its functions, or a command over many inputs, on the pool.

    Options stand before the file and go before those of the decorator; what follows the file belongs to the
    function or script.
    In a command {} stands for the argument, {/} for its base name, {.} without suffix, {#} for its number.

    \b
    Examples:
      fallow run script.py --its-own argument
      fallow run search.py::score --depth 3
      fallow run --out sums -- seq -s + {} ::: 10 100 1000
      fallow run --files 'scans/*.tif' --out done -- ./convert {} {.}.png
      fallow run --pip pillow --inputs urls.txt -- python thumb.py {}
    """
    from fallow.cli.run import RunOptions, given_flags, run_target

    tail = context.obj if isinstance(context.obj, list) else None
    options = RunOptions(
        env=env,
        pip=tuple(pip or ()),
        out=out,
        inputs=inputs,
        files=tuple(files or ()),
        ship=tuple(ship or ()),
        name=name,
        timeout_s=timeout,
        retries=retries,
        cpu=cpu,
        memory=memory,
        max_nodes=max_nodes,
        as_json=as_json,
        given=given_flags(context),
    )
    try:
        code = run_target(target, list(context.args), tail, options)
    except KeyboardInterrupt:
        from fallow.sdk.script_end import interrupted

        interrupted()
        code = 130
    raise typer.Exit(code)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"fallow {installed('fallow')}")
        raise typer.Exit()


def split_command(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Take what stands behind `--` of `fallow run` away: it is a command of the user's, with options of its own."""
    if arguments[:1] == ["run"] and "--" in arguments:
        at = arguments.index("--")
        return arguments[:at], arguments[at + 1 :]
    return arguments, None


def main(arguments: list[str] | None = None) -> None:
    """Run the program; ends in SystemExit. Exit codes: 1 for what went wrong, 2 for usage, 130 for Ctrl-C."""
    fill_streams()
    own, tail = split_command(sys.argv[1:] if arguments is None else arguments)
    try:
        app(own, prog_name="fallow", obj=tail)
    except FallowError as error:
        sys.exit(_say(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone (`fallow jobs | head`). Nothing is left to say to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            sys.exit(_say("the disk is full: what was to be written has no room. Free some and run again."))
        if error.filename is None:
            raise
        sys.exit(_say(_file_words(error)))


def _file_words(error: OSError) -> str:
    """A folder that may not be written, a disk that is full: nothing that a traceback would help with."""
    from fallow.wire.address import home_dir

    path, home = os.fsdecode(error.filename), str(home_dir())
    words = f"{path} cannot be used: {error.strerror or error}."
    if f"{home}/".startswith(f"{path}/") or f"{path}/".startswith(f"{home}/"):
        words += " Fallow keeps its things there; name another folder with --home or FALLOW_HOME."
    return words


def _say(words: str) -> int:
    print(f"fallow: {words}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
