"""The customer's own modules, found and zipped, so that a function may import them on the node.

What is local: modules that were imported, or that the script's folder offers for a name that shipped code imports,
and that lie neither in the standard library nor among installed packages (an editable install is local).
"""

from __future__ import annotations

import functools
import io
import re
import site
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from fallow.model.errors import SettingError

MODULES_LIMIT_BYTES = 64 << 20
FILES_LIMIT = 20_000
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+(.+))", re.MULTILINE)
_SKIPPED = {
    "__pycache__",
    ".git",
    ".hg",
    ".venv",
    "venv",
    "node_modules",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
}
_NEVER = {"fallow", "__main__", "__mp_main__"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_cache: dict[tuple[tuple[str, int, int], ...], bytes] = {}


def zip_local_modules(extra: Iterable[str] = ()) -> bytes | None:
    """The zip, the same bytes for the same files; None where there is nothing to send. Raises SettingError where it
    would be too large, or where a name in `extra` is no module."""
    roots = find_local_roots(sys.modules, _script_folder())
    for name in extra:
        roots.update(_named_root(name))
    if not roots:
        return None
    files = list(_files(roots))
    key = tuple((arc, int(stat.st_mtime_ns), stat.st_size) for arc, path in files for stat in (path.stat(),))
    if key not in _cache:
        _check_size(roots, files)
        _cache.clear()
        _cache[key] = _zip(files)
    return _cache[key]


def find_local_roots(modules: dict[str, ModuleType], script_folder: Path | None) -> dict[str, Path]:
    """Top-level local modules by name: the .py file, or the package's folder."""
    roots: dict[str, Path] = {}
    sources: list[Path] = []
    for name, module in list(modules.items()):
        top = name.partition(".")[0]
        if top in roots or top in _NEVER or top in sys.stdlib_module_names:
            continue
        found = _root_of(top, modules.get(top, module))
        if found is not None and not _is_outside(found):
            roots[top] = found
    main = getattr(modules.get("__main__"), "__file__", None)
    if script_folder is not None and main:
        sources.append(Path(main))
    for root in roots.values():
        sources += [root] if root.is_file() else sorted(root.rglob("*.py"))[:500]
    folder = script_folder
    while folder is not None and sources:
        for top in _imports_of(sources.pop()):
            if top in roots or top in _NEVER or top in modules or top in sys.stdlib_module_names:
                continue
            for candidate in (folder / top / "__init__.py", folder / f"{top}.py"):
                if candidate.is_file() and not _is_outside(candidate):
                    roots[top] = candidate.parent if candidate.name == "__init__.py" else candidate
                    sources.append(candidate)
                    break
    return roots


def imported_names(source: str) -> set[str]:
    """Top-level names that the source imports, inside functions too. Relative imports stay inside their package."""
    names: set[str] = set()
    for from_name, import_list in _IMPORT.findall(source):
        parts = [from_name] if from_name else import_list.split("#")[0].split(",")
        for part in parts:
            words = part.split()
            if words and not words[0].startswith("."):
                names.add(words[0].partition(".")[0])
    return names


def _root_of(top: str, module: ModuleType) -> Path | None:
    spec = getattr(module, "__spec__", None)
    if spec is not None and getattr(spec, "origin", None) in ("built-in", "frozen"):
        return None
    file = getattr(module, "__file__", None)
    if file:
        path = Path(file)
        if path.name.startswith("__init__."):
            return path.parent
        # Without a source there is nothing that another machine could run.
        return path if path.suffix == ".py" and path.stem == top and path.is_file() else None
    for folder in getattr(module, "__path__", ()):
        if Path(folder).is_dir():
            return Path(folder)
    return None


@functools.cache
def _outside_prefixes() -> list[str]:
    folders = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages() if hasattr(site, "getsitepackages") else ())
    with_user = getattr(site, "getusersitepackages", None)
    if with_user is not None:
        folders.add(with_user())
    return [str(Path(folder).resolve()) for folder in folders]


@functools.lru_cache(1 << 16)
def _is_outside(path: Path) -> bool:
    """Asked of every module for every job: where a module lies does not change while it is loaded."""
    text = str(path.resolve())
    parts = Path(text).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return any(text == prefix or text.startswith(prefix + "/") for prefix in _outside_prefixes())


def _script_folder() -> Path | None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(main).resolve().parent if main else None


def _named_root(name: str) -> dict[str, Path]:
    import importlib.util

    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix == ".py"):
        return {path.stem if path.is_file() else path.name: path.resolve()}
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise SettingError(f"modules: {name!r} is neither a module that can be imported here nor a folder.")
    origin = Path(spec.origin)
    return {name.partition(".")[0]: origin.parent if origin.name == "__init__.py" else origin}


def _files(roots: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    for name, root in sorted(roots.items()):
        if root.is_file():
            yield f"{name}.py", root
            continue
        for count, path in enumerate(sorted(root.rglob("*"))):
            if count > FILES_LIMIT:
                raise SettingError(_too_large(name, root, f"over {FILES_LIMIT} files"))
            parts = path.relative_to(root).parts
            if not _SKIPPED.intersection(parts) and path.is_file() and path.suffix not in (".pyc", ".pyo"):
                yield "/".join((name, *parts)), path


def _check_size(roots: dict[str, Path], files: list[tuple[str, Path]]) -> None:
    sizes: dict[str, int] = dict.fromkeys(roots, 0)
    for arc, path in files:
        sizes[arc.partition("/")[0].removesuffix(".py")] += path.stat().st_size
    total = sum(sizes.values())
    if total > MODULES_LIMIT_BYTES:
        name = max(sizes, key=lambda key: sizes[key])
        raise SettingError(_too_large(name, roots[name], f"{sizes[name] >> 20} MB"))


def _too_large(name: str, root: Path, what: str) -> str:
    return (
        f"the local module {name!r} ({root}) holds {what}, and local modules of at most "
        f"{MODULES_LIMIT_BYTES >> 20} MB are sent along. Keep data elsewhere and ship it with fallow.File or "
        "fallow.put, or switch this off with env=fallow.Env(modules=False)."
    )


def _zip(files: list[tuple[str, Path]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for arc, path in files:
            entry = zipfile.ZipInfo(arc, _EPOCH)
            entry.external_attr = (0o755 if path.stat().st_mode & 0o100 else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def _imports_of(path: Path) -> frozenset[str]:
    try:
        stat = path.stat()
        return _imports_of_version(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return frozenset()


@functools.lru_cache(4096)
def _imports_of_version(path: Path, _mtime_ns: int, _size: int) -> frozenset[str]:
    return frozenset(imported_names(path.read_text(encoding="utf-8", errors="replace")))
