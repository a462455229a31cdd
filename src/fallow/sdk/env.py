"""What a function needs on the node: packages, and the customer's own modules."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fallow.model.errors import SettingError
from fallow.model.job import Blob, EnvSpec

_PYTHON = re.compile(r"^3\.\d{1,2}$")
REQUIREMENTS_LIMIT = 1000


class Env:
    """An environment that nodes build with uv, once each, and keep.

    pip: requirement lines such as 'numpy>=2'. Wheels only, unless allow_sdist. modules: False sends none of the
    script's own modules along; a list names modules or folders to send in addition to those found by themselves."""

    def __init__(
        self,
        *,
        pip: Iterable[str] = (),
        allow_sdist: bool = False,
        modules: bool | Iterable[str] = True,
    ) -> None:
        if isinstance(pip, str):
            raise SettingError(f"pip={pip!r}: write a list of requirements, as in pip=['numpy', 'scikit-learn'].")
        self.requirements = tuple(sorted({_requirement(line) for line in pip}))
        if len(self.requirements) > REQUIREMENTS_LIMIT:
            raise SettingError(
                f"{len(self.requirements)} requirements are more than the limit of {REQUIREMENTS_LIMIT}."
            )
        self.allow_sdist = bool(allow_sdist)
        if isinstance(modules, str):
            raise SettingError(f"modules={modules!r}: write a list, as in modules=['helpers'].")
        self.ship_modules = bool(modules) if isinstance(modules, bool) else True
        self.extra_modules = () if isinstance(modules, bool) else tuple(str(name) for name in modules)

    @classmethod
    def from_requirements(cls, path: str | Path, *, allow_sdist: bool = False) -> Env:
        """From a requirements file. `-r other.txt` inside is followed, and where a line has hashes nodes check them;
        other options of pip are refused in words."""
        return cls(pip=_read_requirements(Path(path), depth=0), allow_sdist=allow_sdist)

    @classmethod
    def from_pyproject(
        cls, path: str | Path = "pyproject.toml", *, extras: Iterable[str] = (), allow_sdist: bool = False
    ) -> Env:
        """From [project] dependencies of a pyproject.toml, with those of the named extras. Raises SettingError where
        dependencies stand elsewhere (those of Poetry's own table, dynamic ones)."""
        import tomllib

        file = Path(path)
        if file.is_dir():
            file = file / "pyproject.toml"
        try:
            content = tomllib.loads(_read(file))
        except tomllib.TOMLDecodeError as error:
            raise SettingError(f"{file} cannot be read: {error}.") from None
        lines = _project_requirements(file, content.get("project"), tuple(extras))
        return cls(pip=lines, allow_sdist=allow_sdist)

    def __repr__(self) -> str:
        return f"Env(pip={list(self.requirements)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Env) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.requirements, self.allow_sdist, self.ship_modules, self.extra_modules))


def env_spec(env: Env | None, modules: Blob | None) -> EnvSpec:
    """What goes into the job: this interpreter's minor version always does."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if env is None:
        return EnvSpec(python=python, modules=modules)
    return EnvSpec(python=python, requirements=env.requirements, allow_sdist=env.allow_sdist, modules=modules)


def _requirement(line: Any) -> str:
    if not isinstance(line, str) or not line.strip():
        raise SettingError(f"{line!r} is not a requirement. Write one such as 'numpy>=2'.")
    text = line.strip()
    if text.startswith("-"):
        raise SettingError(f"{text!r} is an option of pip, not a requirement. Write one such as 'numpy>=2'.")
    if text.startswith((".", "~")):
        raise SettingError(
            f"{text!r} is a path of this script's, and nodes do not see it. Modules beside the script travel by "
            "themselves; others are named by modules=[...]; what has to be built needs a package index."
        )
    if "\n" in text:
        raise SettingError(f"{text!r} has several lines: give each requirement by itself.")
    return text


def _read_requirements(path: Path, depth: int) -> list[str]:
    if depth > 10:
        raise SettingError(f"{path}: requirement files include each other without end.")
    lines: list[str] = []
    text = _read(path).replace("\\\n", " ")
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not line:
            continue
        include = re.match(r"^(?:-r|--requirement)[\s=]*(\S+)$", line)
        if include:
            lines += _read_requirements(path.parent / include[1], depth + 1)
        elif line.startswith("-"):
            raise SettingError(
                f"{path}, line {number}: the option {line.split()[0]!r} is not supported. Write requirements only."
            )
        else:
            lines.append(" ".join(line.split()))
    return lines


def _project_requirements(file: Path, project: Any, extras: tuple[str, ...]) -> list[str]:
    where = "write them there, or into a requirements file"
    if not isinstance(project, dict):
        raise SettingError(f"{file} has no table [project], where dependencies stand: {where}.")
    if "dependencies" in (dynamic := project.get("dynamic", ())) or (extras and "optional-dependencies" in dynamic):
        raise SettingError(f"{file} leaves its dependencies to what builds it (dynamic = ...): {where}.")
    optional = project.get("optional-dependencies", {})
    for key, value in (("dependencies", project.get("dependencies", [])), *optional.items()):
        if not isinstance(value, list):
            raise SettingError(f"{file}: {key} = {value!r} is not a list of requirements, such as ['numpy>=2'].")
    lines = list(project.get("dependencies", ()))
    wanted, taken = list(extras), set()
    while wanted:
        extra = wanted.pop()
        if extra not in optional:
            raise SettingError(f"{file} has no extra {extra!r}; it has {', '.join(optional) or 'none'}.")
        taken.add(extra)
        for line in optional[extra]:
            # `all = ["this-project[plot,test]"]`: extras of its own, not of a package of the index.
            own = re.match(r"\s*([\w.-]+)\s*\[([^\]]*)\]\s*$", str(line))
            if own and _normal(own[1]) == _normal(str(project.get("name", ""))):
                wanted += [name for name in re.split(r"[\s,]+", own[2].strip()) if name not in taken]
            else:
                lines.append(line)
    return lines


def _normal(name: str) -> str:
    """A package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path} is not a text file in UTF-8.") from None
