"""Environments and the customer's own modules."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import fallow
from fallow.model.errors import SettingError
from fallow.sdk import modules
from fallow.sdk.env import env_spec
from fallow.sdk.modules import find_local_roots, imported_names


def test_requirements_are_sorted_and_checked() -> None:
    env = fallow.Env(pip=["b>=2", "a", "b>=2"])
    assert env.requirements == ("a", "b>=2")
    assert env_spec(env, None).python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert env == fallow.Env(pip=["a", "b>=2"])
    for bad in (["--index-url x"], [""], [3], ["a\nb"]):
        with pytest.raises(SettingError):
            fallow.Env(pip=bad)  # type: ignore[list-item]
    with pytest.raises(SettingError, match="list of requirements"):
        fallow.Env(pip="numpy")


def test_from_requirements(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("numpy>=2  # arrays\n\n# a comment\n")
    (tmp_path / "all.txt").write_text(
        "-r base.txt\nscipy==1 \\\n  --hash=sha256:00  \\\n  --hash=sha256:01  # both\r\nx @ file:///a#egg=x\n"
    )
    assert fallow.Env.from_requirements(tmp_path / "all.txt").requirements == (
        "numpy>=2",
        "scipy==1 --hash=sha256:00 --hash=sha256:01",
        "x @ file:///a#egg=x",
    )
    (tmp_path / "bad.txt").write_text("numpy\n--extra-index-url foo\n")
    with pytest.raises(SettingError, match="line 2"):
        fallow.Env.from_requirements(tmp_path / "bad.txt")
    with pytest.raises(SettingError, match="cannot be read"):
        fallow.Env.from_requirements(tmp_path / "none.txt")
    (tmp_path / "loop.txt").write_text("-r loop.txt\n")
    with pytest.raises(SettingError, match="without end"):
        fallow.Env.from_requirements(tmp_path / "loop.txt")


def test_from_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\nplot = ["matplotlib"]\n'
    )
    assert fallow.Env.from_pyproject(tmp_path).requirements == ("numpy",)
    assert fallow.Env.from_pyproject(tmp_path, extras=["plot"]).requirements == ("matplotlib", "numpy")
    with pytest.raises(SettingError, match="no extra 'x'; it has plot"):
        fallow.Env.from_pyproject(tmp_path, extras=["x"])


def test_extras_may_name_other_extras_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "My.Tool"\n[project.optional-dependencies]\n'
        'all = ["my-tool[plot, test]", "attrs"]\nplot = ["matplotlib"]\ntest = ["my_tool[all]", "pytest"]\n'
    )
    env = fallow.Env.from_pyproject(tmp_path, extras=["all"])
    assert env.requirements == ("attrs", "matplotlib", "pytest")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[build-system]\nrequires = ['x']\n", r"no table \[project\]"),
        ("[tool.poetry.dependencies]\nsix = '*'\n", r"no table \[project\]"),
        ("[project]\nname = 'a'\ndynamic = ['dependencies']\n", "leaves its dependencies"),
        ("[project]\ndependencies = 'six'\n", "dependencies = 'six' is not a list"),
        ("[project\n", "cannot be read"),
    ],
)
def test_a_pyproject_without_what_is_asked_for_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(SettingError, match=words):
        fallow.Env.from_pyproject(tmp_path)


def test_imported_names() -> None:
    source = """
import os, sys as system
import pkg.sub
from other.part import thing
from . import sibling
def f():
    import inside  # comment, not, names
"""
    assert imported_names(source) == {"os", "sys", "pkg", "other", "inside"}


def test_local_modules_are_found_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def f():\n    import lazy_one\n    import numpy\n")
    (tmp_path / "lazy_one.py").write_text("import lazy_two\n")
    (tmp_path / "lazy_two").mkdir()
    (tmp_path / "lazy_two" / "__init__.py").write_text("")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "loaded.py").write_text("")
    main, loaded = ModuleType("__main__"), ModuleType("loaded")
    main.__file__ = str(tmp_path / "script.py")
    loaded.__file__ = str(tmp_path / "loaded.py")
    found = find_local_roots({"__main__": main, "loaded": loaded, "json": sys.modules["json"]}, tmp_path)
    assert set(found) == {"loaded", "lazy_one", "lazy_two"}


def test_zip_is_the_same_for_the_same_files_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mine"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "__pycache__" / "a.pyc").write_text("")
    (package / "data.txt").write_text("data")
    monkeypatch.setattr(modules, "find_local_roots", lambda *_: {})
    first = modules.zip_local_modules([str(package)])
    modules._cache.clear()
    assert first is not None
    assert modules.zip_local_modules([str(package)]) == first
    assert zipfile.ZipFile(io.BytesIO(first)).namelist() == ["mine/__init__.py", "mine/data.txt"]
    monkeypatch.setattr(modules, "MODULES_LIMIT_BYTES", 5)
    (package / "data.txt").write_text("more data")
    with pytest.raises(SettingError, match=r"'mine'.*fallow\.File"):
        modules.zip_local_modules([str(package)])
    with pytest.raises(SettingError, match="neither a module"):
        modules.zip_local_modules(["no_such_module_here"])
