"""`fallow run`: a script, a function of a file, or a command, on the pool."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from fallow.model.errors import FallowError, SettingError


class RunOptions(Struct, frozen=True):
    """Options of `fallow run`, as they were given. `timeout_s`: 0 for none; `given`: flags on the command line."""

    env: Path | None = None
    pip: tuple[str, ...] = ()
    out: Path = Path("out")
    inputs: str = ""
    files: tuple[str, ...] = ()
    ship: tuple[Path, ...] = ()
    name: str = ""
    timeout_s: float = 0.0
    retries: int = 0
    cpu: int = 1
    memory: str = ""
    max_nodes: int = 0
    as_json: bool = False
    given: frozenset[str] = frozenset()


FUNCTION_FLAGS = ("--env", "--pip", "--timeout", "--retries", "--cpu", "--memory", "--max-nodes")
"""Flags that set for this run what the decorator sets."""
COMMAND_FLAGS = ("--out", "--inputs", "--files", "--with", "--name")
OWN_FLAGS = (*FUNCTION_FLAGS, *COMMAND_FLAGS, "--json")


class FileShape(Struct, frozen=True):
    """What a file offers, read from its syntax alone."""

    decorated: tuple[str, ...]
    """Module-level functions under a decorator `@something.function(...)`."""
    functions: tuple[str, ...]
    """All module-level functions."""
    has_guard: bool
    """`if __name__ == "__main__":`"""
    uses: bool = False
    """It calls its own functions as soon as it is loaded: a script without a guard."""


def given_flags(context: Any) -> frozenset[str]:
    """The long forms of the options that stand on the command line."""
    flags: set[str] = set()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            flags.update(option for option in parameter.opts if option.startswith("--"))
    return frozenset(flags)


def run_target(target: str, arguments: list[str], tail: list[str] | None, options: RunOptions) -> int:
    """Run what was named; the exit code. Raises FallowError in words."""
    if not target:
        if not tail:
            raise SettingError(
                "nothing to run: name a file (fallow run FILE.py) or a command (fallow run -- ./tool {})."
            )
        from fallow.cli.command_jobs import run_command_job

        return run_command_job(tail, options)
    words = [*arguments, *(["--", *tail] if tail is not None else [])]
    path_text, _, function = target.partition("::")
    path = Path(path_text)
    if path_text.startswith("-"):
        raise SettingError(f"fallow run has no option {path_text!r}. It has: {', '.join(OWN_FLAGS)}.")
    if tail is not None and path.suffix != ".py" and any(flag in options.given for flag in COMMAND_FLAGS):
        raise SettingError(
            f"{path_text!r} stands where a Python file would. A pattern of files goes in quotes, and a folder does as "
            f"well; other options follow it: fallow run --files '{path.parent}/*' --out FOLDER -- ./tool {{}}"
        )
    if path.is_dir():
        raise SettingError(f"{path_text!r} is a folder. Name a Python file: fallow run FILE.py")
    if not path.is_file():
        raise SettingError(
            f"there is no file {path_text!r}."
            + ("" if path_text.endswith(".py") else " To run a command, put -- before it: fallow run -- ./tool {}")
        )
    source = path.read_text(encoding="utf-8", errors="replace")
    try:
        shape = file_shape(source)
    except SyntaxError as error:
        hint = (
            ""
            if path.suffix == ".py"
            else f". Is it a Python file? Inputs are named: --files {path_text} -- ./tool {{}}"
        )
        line = f":{error.lineno}" if error.lineno else ""
        raise SettingError(f"{path_text}{line}: {error.msg}{hint}") from None
    chosen = function or choose_function(shape)
    _name_pool()
    if not chosen:
        _refuse(
            options, (*FUNCTION_FLAGS, *COMMAND_FLAGS), "but the file is run as a script: what it sets, it sets itself"
        )
        return _run_script(path, words)
    return _run_function(path, chosen, words, options)


# ---------------------------------------------------------------- what is in a file


def file_shape(source: str) -> FileShape:
    """Look at a file without running it."""
    decorated, functions, has_guard = [], [], False
    rest: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(node.name)
            if any(_decorator_name(item) == "function" for item in node.decorator_list):
                decorated.append(node.name)
        elif _is_guard(node):
            has_guard = True
        else:
            rest.append(node)
    named = {part.id for node in rest for part in ast.walk(node) if isinstance(part, ast.Name)}
    return FileShape(tuple(decorated), tuple(functions), has_guard, bool(named & set(decorated)))


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)


def _decorator_name(decorator: ast.expr) -> str:
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return call.attr if isinstance(call, ast.Attribute) else ""


def choose_function(shape: FileShape) -> str:
    """Which function runs when none was named: `main` (unless the file runs it by itself), the only decorated one,
    or '' for the file as a script. Raises SettingError where there are several."""
    if shape.has_guard or shape.uses or not shape.decorated:
        return ""
    if "main" in shape.functions:
        return "main"
    if len(shape.decorated) == 1:
        return shape.decorated[0]
    raise SettingError(
        f"the file has {len(shape.decorated)} functions ({', '.join(shape.decorated)}). "
        "Name one: fallow run FILE.py::FUNCTION"
    )


# ---------------------------------------------------------------- running


def _name_pool() -> None:
    """Let the script, and what it starts, use the pool that this command would use; without one it starts its own."""
    from fallow.model.errors import PoolUnreachable

    if not os.environ.get("FALLOW_URL"):
        from fallow.cli.client import find_address

        with contextlib.suppress(PoolUnreachable):
            os.environ["FALLOW_URL"] = str(find_address())


def _run_script(path: Path, words: list[str]) -> int:
    """As `python FILE` does it."""
    import runpy

    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except FallowError:
        raise
    except Exception as error:
        print_users_part(error)
        return 1
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    return 0


def print_users_part(error: Exception) -> None:
    """The traceback without the frames of this program that stand before the user's own."""
    import runpy
    import traceback

    import fallow

    ours = (str(Path(fallow.__file__).parent), str(runpy.__file__), "<frozen ")
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(ours):
        trace = trace.tb_next
    traceback.print_exception(error.with_traceback(trace))


def _load(path: Path) -> ModuleType:
    """Import the file as a module of its name, so that its functions reach the nodes as those of a module do.

    A file whose name is none (`my-search.py`) stands in for the main module, whose functions travel by value; what
    it guards with `if __name__ == "__main__"` does not run."""
    import importlib.util

    file = path.resolve()
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    # Modules that travel along are looked for beside the main file.
    sys.modules["__main__"].__file__ = str(file)
    name = path.stem
    if name.isidentifier() and name not in sys.modules and name not in sys.stdlib_module_names:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise SettingError(f"{path} cannot be imported: is it a Python file?")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    module = ModuleType("__main__")
    module.__file__ = str(file)
    sys.modules["__main__"] = module
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    tree.body = [node for node in tree.body if not _is_guard(node)]
    exec(compile(tree, str(file), "exec"), vars(module))
    return module


def _refuse(options: RunOptions, flags: tuple[str, ...], why: str) -> None:
    wrong = [flag for flag in flags if flag in options.given]
    if wrong:
        raise SettingError(f"{', '.join(wrong)} {'was' if len(wrong) == 1 else 'were'} given, {why}.")


def function_options(options: RunOptions) -> dict[str, Any]:
    """What was given on the command line, as `with_options` takes it. Raises SettingError."""
    from fallow.cli.command_jobs import environment

    values: dict[str, Any] = {
        "--timeout": options.timeout_s or None,
        "--retries": options.retries,
        "--cpu": options.cpu,
        "--memory": options.memory,
        "--max-nodes": options.max_nodes or None,
    }
    settings = {flag[2:].replace("-", "_"): value for flag, value in values.items() if flag in options.given}
    env = environment(options)
    return settings if env is None else {**settings, "env": env}


def refuse_own_flags(fn: Callable[..., Any], words: Sequence[str], target: str) -> None:
    """Raises SettingError where an option of `fallow run` stands behind the file, and is none of the function's."""
    parameters = inspect.signature(fn).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for word in words:
        flag = word.partition("=")[0]
        if flag in OWN_FLAGS and flag[2:].replace("-", "_") not in parameters:
            value = "" if flag == "--json" else " ..."
            raise SettingError(
                f"{flag} is an option of `fallow run`, not of the function. Put it before the file: "
                f"fallow run {flag}{value} {target}"
            )


def _run_function(path: Path, name: str, words: list[str], options: RunOptions) -> int:
    from fallow.cli.arguments import parse_call
    from fallow.sdk.cls import RemoteClass
    from fallow.sdk.function import Function

    sys.argv = [str(path), *words]
    try:
        module = _load(path)
    except FallowError:
        raise
    except Exception as error:
        print_users_part(error)
        return 1
    fn: Any = module
    for part in name.split("."):
        if isinstance(fn, RemoteClass):
            return _run_method(fn, part, words, options, path)
        fn = getattr(fn, part, None)
    if isinstance(fn, RemoteClass):
        methods = " or ".join(f"{path}::{name}.{method}" for method in fn.names("method"))
        raise SettingError(f"{name} is a class: name a method of it that runs in the pool, {methods}.")
    if fn is None or not callable(fn):
        names = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise SettingError(f"{path} has no function {name!r}. It has: {names or 'none'}.")
    plain = getattr(fn, "__wrapped__", fn)
    if isinstance(fn, Function):
        _refuse(options, COMMAND_FLAGS, "which is for commands, but what runs is a function")
        fn = fn.with_options(**function_options(options))
    else:
        _refuse(
            options,
            (*FUNCTION_FLAGS, *COMMAND_FLAGS),
            f"but {name} is an ordinary function, which runs here: decorate it with @app.function",
        )
    refuse_own_flags(plain, words, f"{path}::{name}")
    remote = getattr(fn, "remote", None)
    positional, named = parse_call(plain, words)
    return _call(remote if remote is not None else fn, positional, named, options)


def _run_method(remote_class: Any, name: str, words: list[str], options: RunOptions, path: Path) -> int:
    """A method of a class: what the class is made with is given by name, beside what the method takes."""
    from fallow.cli.arguments import beside, parse_call

    target = f"{path}::{remote_class.__name__}.{name}"
    methods = remote_class.names("method")
    if name not in methods:
        raise SettingError(f"{remote_class.__name__} has no method {name!r} for the pool; it has {', '.join(methods)}.")
    _refuse(options, COMMAND_FLAGS, "which is for commands, but what runs is a method")
    makes, plain = beside(remote_class.klass, name)
    refuse_own_flags(plain, words, target)
    positional, named = parse_call(plain, words)
    instance = remote_class(**{key: named.pop(key) for key in makes if key in named})
    fn = getattr(instance, name).with_options(**function_options(options))
    return _call(fn.remote, positional, named, options)


def _call(fn: Callable[..., Any], positional: list[Any], named: dict[str, Any], options: RunOptions) -> int:
    """Call it, and print what it returns."""
    try:
        result = fn(*positional, **named)
    except FallowError:
        raise
    except Exception as error:
        print_users_part(error)
        return 1
    if options.as_json:
        from fallow.cli.show import print_json

        print_json(result)
    elif result is not None:
        print(result if isinstance(result, str) else repr(result))
    return 0
