"""Reads the project's own source for the tests of the house: files, modules and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "fallow"
OWN_FOLDERS = ("src", "tests", "bench", "examples", "docs", "scripts", ".ci")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".sh", ".txt", ".yml", ".yaml", ".json", ".cfg", ".html", ".js", ".css", ""}


@dataclass(frozen=True)
class Import:
    """One imported module as it stands in a file. `lazy`: inside a function. `typing`: under TYPE_CHECKING."""

    module: str
    line: int
    lazy: bool
    typing: bool


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    imports: tuple[Import, ...]

    @property
    def part(self) -> str:
        """The part of the house it lies in: 'core', 'wire', ...; 'sdk' for the modules at the top, which customers
        import."""
        pieces = self.name.split(".")
        is_folder = len(pieces) > 2 or (len(pieces) == 2 and self.path.name == "__init__.py")
        return pieces[1] if is_folder else "sdk"

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _walk(nodes: list[ast.stmt], package: str, lazy: bool, typing: bool) -> Iterator[Import]:
    for node in nodes:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, lazy, typing)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                    base = f"{parent}.{base}".rstrip(".")
                for alias in node.names:
                    # 'from fallow.wire import page' imports a module, 'from fallow.wire.page import x' does not.
                    whole = f"{base}.{alias.name}"
                    yield Import(whole if _is_own_module(whole) else base, node.lineno, lazy, typing)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _walk(node.body, package, True, typing)
            case ast.If():
                yield from _walk(node.body, package, lazy, typing or _is_type_checking(node.test))
                yield from _walk(node.orelse, package, lazy, typing)
            case _:
                for field in ("body", "orelse", "finalbody"):
                    yield from _walk(getattr(node, field, []), package, lazy, typing)
                for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    yield from _walk(handler.body, package, lazy, typing)


def _is_own_module(name: str) -> bool:
    if not name.startswith("fallow."):
        return False
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        pieces = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        package = ".".join(pieces[:-1])
        if pieces[-1] == "__init__":
            pieces.pop()
        name = ".".join(pieces)
        found[name] = Module(name, path, tuple(_walk(parsed(path).body, package, False, False)))
    return found


def text_files() -> Iterator[Path]:
    """The project's own text files, those at the top included."""
    candidates = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in OWN_FOLDERS:
        candidates += (ROOT / folder).rglob("*")
    for path in sorted(candidates):
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts and path.name != ".git":
            yield path
