"""Environments, built with the real uv from real wheels."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fallow.agent.environments import (
    WORKER_REQUIREMENTS,
    Environments,
    _run,
    _words,
    environment_digest,
    needs_build,
    refuse_foreign,
)
from fallow.model.errors import EnvironmentFailed, PythonMismatch
from fallow.model.job import EnvSpec

SIX = EnvSpec(requirements=("six",))


def environments(root: Path) -> Environments:
    return Environments(root, lambda: {})


def run(python: str, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_empty_environment_is_the_agents_own_interpreter(tmp_path: Path) -> None:
    assert environments(tmp_path).ready(EnvSpec()) == sys.executable
    assert not needs_build(EnvSpec(python=f"{sys.version_info.major}.{sys.version_info.minor}"))


def test_the_digest_is_of_what_the_environment_is_made_of() -> None:
    assert environment_digest(SIX) == environment_digest(EnvSpec(requirements=("six",)))
    assert environment_digest(EnvSpec(requirements=("a", "b"))) == environment_digest(EnvSpec(requirements=("b", "a")))
    different = (
        EnvSpec(requirements=("six==1.16",)),
        EnvSpec(requirements=("six",), allow_sdist=True),
        EnvSpec(requirements=("six",), python="3.1"),
    )
    assert len({environment_digest(env) for env in (SIX, *different)}) == 4


@pytest.mark.slow
async def test_many_ask_and_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = environments(tmp_path)
    import fallow.agent.environments as module

    calls: list[list[str]] = []
    original = module._run

    async def counted(command: list[str]) -> None:
        calls.append(command)
        await original(command)

    monkeypatch.setattr(module, "_run", counted)
    pythons = await asyncio.gather(*(built.ensure(SIX) for _ in range(8)))
    assert len(set(pythons)) == 1
    assert len(calls) == 2, "one for the environment, one for its packages"
    assert built.ready(SIX) == pythons[0]
    code = "import six, msgspec, cloudpickle, blake3, fallow, sys; print(six.__name__, sys.prefix, fallow.__file__)"
    name, prefix, package = run(pythons[0], code).split()
    assert name == "six"
    assert prefix == str(tmp_path / environment_digest(SIX))
    import fallow

    assert Path(package).resolve() == Path(fallow.__file__).resolve()
    names = [entry.name for entry in tmp_path.iterdir()]
    assert names == [environment_digest(SIX)], "nothing half is left"


@pytest.mark.slow
async def test_an_environment_does_not_see_the_agents_packages(tmp_path: Path) -> None:
    python = await environments(tmp_path).ensure(SIX)
    code = "import importlib.util as u, json; print(json.dumps([bool(u.find_spec(n)) for n in ('nats', 'sqlalchemy')]))"
    assert json.loads(run(python, code)) == [False, False]


@pytest.mark.slow
async def test_a_package_that_does_not_exist_fails_in_uvs_words(tmp_path: Path) -> None:
    env = EnvSpec(requirements=("no-such-package-of-fallow-tests==1.0",))
    with pytest.raises(EnvironmentFailed, match="no-such-package-of-fallow-tests"):
        await environments(tmp_path).ensure(env)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_hashes_are_checked(tmp_path: Path) -> None:
    wrong = EnvSpec(requirements=(f"six==1.16.0 --hash=sha256:{'0' * 64}",))
    refuse_foreign(wrong)
    with pytest.raises(EnvironmentFailed, match="Hash mismatch"):
        await environments(tmp_path).ensure(wrong)


@pytest.mark.slow
async def test_requirements_that_contradict_each_other_fail_in_uvs_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"six==1\.15"):
        await environments(tmp_path).ensure(EnvSpec(requirements=("six==1.16", "six==1.15")))


async def test_a_python_that_is_not_here_is_a_mismatch(tmp_path: Path) -> None:
    with pytest.raises(PythonMismatch, match=r"2\.7"):
        await environments(tmp_path).ensure(EnvSpec(python="2.7"))


@pytest.mark.slow
async def test_one_who_stops_waiting_does_not_end_the_build_of_others(tmp_path: Path) -> None:
    built = environments(tmp_path)
    impatient = asyncio.ensure_future(built.ensure(SIX))
    patient = asyncio.ensure_future(built.ensure(SIX))
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert Path(await patient).exists()


async def test_a_build_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    built = environments(tmp_path)
    impatient = [asyncio.ensure_future(built.ensure(SIX)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for one in impatient:
        one.cancel()
    await asyncio.wait(impatient)
    late = asyncio.ensure_future(built.ensure(SIX))  # while the first is being ended
    assert Path(await late).exists()
    assert built._builds == {}
    assert built._waiting == {}
    assert [entry.name for entry in tmp_path.iterdir()] == [environment_digest(SIX)]

    other = EnvSpec(requirements=("cowsay",))
    given_up = asyncio.ensure_future(built.ensure(other))
    await asyncio.sleep(0.01)
    given_up.cancel()
    await asyncio.wait({given_up})
    while built._builds:
        await asyncio.wait(set(built._builds.values()))
        await asyncio.sleep(0)
    assert built.ready(other) is None


async def test_closing_ends_builds_and_leaves_nothing(tmp_path: Path) -> None:
    built = environments(tmp_path)
    build = asyncio.ensure_future(built.ensure(SIX))
    await asyncio.sleep(0.02)
    await built.close()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == []


async def test_a_build_cancelled_in_the_moment_when_uv_ends_is_cancelled() -> None:
    """The loop was late: what ended meanwhile and who cancels come in the same turns."""
    for turns in range(16):
        running = asyncio.ensure_future(_run(["true"]))
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(0.02)
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = running.cancel()
        done, _ = await asyncio.wait({running})
        assert done == {running}
        assert running.cancelled() == cancelled, f"cancelled after {turns} turns, and it went on"


@pytest.mark.slow
async def test_what_a_crashed_build_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".building-0000-999999999"
    left.mkdir()
    (left / "half").write_text("")
    await environments(tmp_path).ensure(SIX)
    assert not left.exists()


def test_worker_requirements_are_those_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(WORKER_REQUIREMENTS) <= set(project["dependencies"])


@pytest.mark.slow
async def test_environments_used_longest_ago_go_but_not_those_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fallow.agent.environments.KEPT_LIMIT", 2)
    for age, name in enumerate("abc"):
        (tmp_path / (name * 32)).mkdir()
        os.utime(tmp_path / (name * 32), (age, age))
    used = str(tmp_path / ("a" * 32) / "bin" / "python")
    await Environments(tmp_path, lambda: {}, lambda: {used}).ensure(SIX)
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"a" * 32, "c" * 32, environment_digest(SIX)}


def test_uvs_words_do_not_name_a_file_that_the_customer_never_saw() -> None:
    said = (
        "error: Couldn't parse requirement in `/srv/a/.building-0a1b-77/requirements.txt` at position 0\n  attrs=1.0\n"
    )
    assert _words(said) == "error: Couldn't parse requirement in the requirements\n  attrs=1.0"


def test_who_needs_a_build_from_source_is_told_how_to_allow_it() -> None:
    said = "hint: Wheels are required for `docopt` because building from source is disabled for all packages"
    assert _words(said).endswith("Env(..., allow_sdist=True) lets nodes build it from source.")
