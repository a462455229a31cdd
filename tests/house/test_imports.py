"""The import contract: arrows point down, so that each part can be read, tested and replaced by itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from .source import ROOT, Module, modules

ARROWS: dict[str, tuple[set[str], str]] = {
    "model": (set(), "the vocabulary stands alone, so that everything may use it"),
    "core": ({"model"}, "decisions know nothing of how messages travel or where state is kept"),
    "wire": ({"model", "core"}, "messages and connections serve every shell and know none"),
    "store": ({"model", "core"}, "a store keeps what it is given, whoever asks"),
    "coordinator": ({"model", "core", "wire", "store"}, "it meets agents and clients over the wire alone"),
    "sandbox": ({"model"}, "it starts programs, whatever they are"),
    "agent": ({"model", "core", "wire", "worker", "sandbox"}, "an agent runs on strangers' machines, without a store"),
    "worker": ({"model", "wire"}, "it runs beside customers' code, in environments that hold little else"),
    "sdk": ({"model", "core", "wire", "worker"}, "a customer's script needs no store and no server code"),
    "sim": ({"model", "core", "wire"}, "it drives the core alone, with its own stand-ins for every shell"),
    "cli": (
        {"model", "core", "wire", "store", "coordinator", "agent", "worker", "sdk", "sandbox"},
        "the command line starts everything, and nothing depends on it",
    ),
}
WORKER_MAY_IMPORT = {
    "fallow.wire.page",
    "fallow.wire.salvage",
    "fallow.wire.apart",
    "fallow.wire.plain",
    "fallow.wire.code",
    "fallow.wire.by_value",
    "fallow.wire.offender",
    "fallow.wire",
}
WORKER_PACKAGES = {"msgspec", "cloudpickle", "blake3"}
LINUX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "uvloop", "_posixsubprocess"}


def _top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("module", modules().values(), ids=lambda module: module.name)
def test_arrows_point_down(module: Module) -> None:
    allowed, reason = ARROWS[module.part]
    for found in module.imports:
        if not found.module.startswith("fallow."):
            continue
        target = modules().get(found.module)
        part = target.part if target else found.module.split(".")[1]
        assert part in allowed | {module.part}, (
            f"{module.at(found.line)}: {module.part}/ imports {found.module}, but may only import from "
            f"{', '.join(sorted(allowed)) or 'nothing of ours'}: {reason}. Move the shared piece down, or pass it in."
        )


def _worker_closure() -> list[Module]:
    todo = [module.name for module in modules().values() if module.part == "worker"]
    seen: list[Module] = []
    while todo:
        name = todo.pop()
        module = modules().get(name)
        if module is None or module in seen:
            continue
        seen.append(module)
        todo += [found.module for found in module.imports if not found.typing]
    return seen


def test_worker_needs_only_what_every_environment_holds() -> None:
    for module in _worker_closure():
        for found in module.imports:
            if found.typing:
                continue
            if _top(found.module) == "fallow":
                parts = found.module.split(".")
                fine = parts[1:2] in ([], ["worker"], ["model"]) or found.module in WORKER_MAY_IMPORT
            else:
                fine = _top(found.module) in WORKER_PACKAGES or _top(found.module) in sys.stdlib_module_names
            assert fine, (
                f"{module.at(found.line)}: a worker would import {found.module}. It runs in the customer's "
                f"environment, which only holds the standard library and {', '.join(sorted(WORKER_PACKAGES))}."
            )


def test_importing_the_worker_loads_no_network_code() -> None:
    """What the syntax tree cannot show: a package's __init__ that pulls in half the house."""
    names = sorted(
        module.name for module in modules().values() if module.part == "worker" and "__main__" not in module.name
    )
    heavy = ("nats", "aiohttp", "sqlalchemy", "obstore", "psutil", "rich", "typer", "numpy", "alembic")
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), (
        f"importing fallow.worker loads {done.stdout.split()}: an environment of a customer need not have it, and "
        "every worker would pay for it. Import it inside the function that needs it."
    )


def test_sdk_and_cli_import_on_every_platform() -> None:
    todo = [(module.name, (module.name,)) for module in modules().values() if module.part in ("sdk", "cli")]
    seen: set[str] = set()
    while todo:
        name, way = todo.pop()
        module = modules().get(name)
        if module is None or name in seen:
            continue
        seen.add(name)
        for found in module.imports:
            if found.lazy or found.typing:
                continue
            assert _top(found.module) not in LINUX_ONLY or _guarded(module, found.line), (
                f"{module.at(found.line)}: importing {' -> '.join(way)} imports {found.module}, which is not there on "
                "every platform. Customers import the SDK and type commands on Windows and macOS too: import it "
                "inside the function that needs it."
            )
            todo.append((found.module, (*way, found.module)))


def _guarded(module: Module, line: int) -> bool:
    """Under an `if` on the platform, or in a `try` for ImportError: then the import is indented."""
    return module.path.read_text().splitlines()[line - 1].startswith(" ")


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines}
    providers = packages_distributions()
    # Looked at only where a customer's objects bring it along; never needed.
    looked_at = {"numpy", "torch", "dask", "IPython", "ipykernel"}
    for module in modules().values():
        for found in module.imports:
            top = _top(found.module)
            if found.typing or top in sys.stdlib_module_names or top == "fallow" or (found.lazy and top in looked_at):
                continue
            names = {name.lower() for name in providers.get(top, [top])}
            assert names & declared, (
                f"{module.at(found.line)}: {top} is imported, but pyproject.toml does not declare it: a fresh "
                "installation would lack it."
            )
