"""core/ and model/ are pure: (state, event, now) -> (state, effects). The simulator and production run the same lines,
and a run can be repeated from its seed, only while nothing in there looks at the world."""

from __future__ import annotations

import ast

import pytest

from .source import Module, modules, parsed

FORBIDDEN_MODULES = {
    "time": "the clock: take `now` as an argument",
    "datetime": "the clock: take seconds as an argument",
    "random": "randomness: take a seeded generator as an argument (its type under TYPE_CHECKING is fine)",
    "secrets": "randomness: take bytes as an argument",
    "uuid": "randomness: take the identifier as an argument",
    "os": "the environment and files: the shell reads them and passes values in",
    "sys": "the interpreter's state: the shell reads it and passes values in",
    "platform": "the machine: the shell probes it and passes values in",
    "pathlib": "files: the shell reads and writes",
    "io": "files: the shell reads and writes",
    "tempfile": "files: the shell reads and writes",
    "shutil": "files: the shell reads and writes",
    "subprocess": "processes: return an effect",
    "socket": "the network: return an effect",
    "ssl": "the network: return an effect",
    "http": "the network: return an effect",
    "urllib": "the network: return an effect",
    "select": "waiting: return an effect with a time",
    "asyncio": "waiting: the shell owns the loop",
    "threading": "threads: the core is called by one at a time",
    "concurrent": "threads: the core is called by one at a time",
    "multiprocessing": "processes: return an effect",
    "queue": "threads: the core is called by one at a time",
    "signal": "the outside: the shell turns it into an event",
    "logging": "output: return a reason that the shell writes down",
    "nats": "the network: return an effect",
    "aiohttp": "the network: return an effect",
    "sqlalchemy": "the store: return an effect",
    "obstore": "the store: return an effect",
    "psutil": "the machine: the shell probes it and passes values in",
}
FORBIDDEN_CALLS = {
    "open": "files: the shell reads and writes",
    "print": "output: return a reason that the shell writes down",
    "input": "the outside: the shell turns it into an event",
    "id": "addresses differ from run to run: use an identifier",
    "hash": "string hashes differ from run to run: compare or sort by value",
    "exec": "code at run time cannot be read here",
    "eval": "code at run time cannot be read here",
    "__import__": "imports at run time cannot be read here",
}
PURE = [module for module in modules().values() if module.part in ("core", "model", "ledger")]


@pytest.mark.parametrize("module", PURE, ids=lambda module: module.name)
def test_no_look_at_the_world(module: Module) -> None:
    for found in module.imports:
        top = found.module.split(".")[0]
        assert found.typing or top not in FORBIDDEN_MODULES, (
            f"{module.at(found.line)} imports {found.module}. {module.part}/ must stay pure; this is "
            f"{FORBIDDEN_MODULES[top]}."
        )
    for node in ast.walk(parsed(module.path)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                pytest.fail(f"{module.at(node.lineno)} calls {name}(): {FORBIDDEN_CALLS[name]}.")
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                pytest.fail(
                    f"{module.at(node.lineno)} waits (async). {module.part}/ must stay synchronous: return an effect, "
                    "and let the shell wait."
                )
            case ast.Global():
                pytest.fail(f"{module.at(node.lineno)} writes a global: state goes in and out as an argument.")


def test_core_keeps_no_state_between_calls() -> None:
    """A module-level list, dict or set would be shared by all pools of one process, and by all tests."""
    for module in PURE:
        for node in parsed(module.path).body:
            if isinstance(node, ast.Assign) and isinstance(
                node.value, ast.List | ast.ListComp | ast.SetComp | ast.DictComp
            ):
                name = node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
                assert name.startswith("__"), (
                    f"{module.at(node.lineno)}: {name} can be changed at run time. Make it a tuple, a frozenset, or an "
                    "annotated Mapping."
                )
