"""Environments of jobs, built on the node with uv: content-addressed, each built once, never half.

An environment is a virtual environment with the job's requirements, what a worker itself needs, and a link to the
agent's own `fallow` package. The empty one is the agent's own interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import fallow
from fallow.agent.caches import tree_bytes
from fallow.agent.probe import own_python, uv_program
from fallow.core.quantities import size_words
from fallow.model.errors import EnvironmentFailed, PythonMismatch
from fallow.model.job import EnvSpec

if TYPE_CHECKING:
    from fallow.agent.confined import Confinement

log = logging.getLogger("fallow.agent")

WORKER_REQUIREMENTS = ("msgspec>=0.19", "cloudpickle>=3.1", "blake3>=1.0")
"""What worker/ imports beyond the standard library."""
BUILD_TIMEOUT_S = 1800.0
MEASURE_EVERY_S = 1.0
"""Between looks at what an installation outside of a sandbox has written."""
KEPT_LIMIT = 16
"""Environments kept for later; the ones used longest ago go when there are more."""
WORDS_LIMIT = 8_000
_TOO_LONG = f"building the environment took longer than {BUILD_TIMEOUT_S / 60:.0f} minutes and was ended."
FORMAT = "1"
"""Part of every digest: changes when environments are built differently."""
PASSING_WORDS = ("error sending request", "dns error", "connection reset", "timed out", "connection refused")
"""uv's words for trouble with the network, which may be gone on the next try."""


def needs_build(env: EnvSpec) -> bool:
    """Say whether the agent's own interpreter will not do."""
    return bool(env.requirements) or (env.python != "" and env.python != own_python())


def environment_digest(env: EnvSpec) -> str:
    """Name of an environment: what it is made of, and nothing else."""
    parts = [FORMAT, env.python or own_python(), env.allow_sdist, sorted(env.requirements), WORKER_REQUIREMENTS]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


_NAMED = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*(\(?[<>=!~][^@;#/\\\"'$`|&{}]*\)?)?\s*(;[^@#/\\$`|&{}]*)?\Z"
)
"""A package by its name, with extras, versions and markers: no address, no path, no option of the installer."""


def refuse_foreign(env: EnvSpec) -> None:
    """On machines of strangers' customers packages come from the index that the machine's owner has set: no line can
    name a file or an address of the owner's network. Raises EnvironmentFailed."""
    for line in env.requirements:
        if not _NAMED.match(line.strip()):
            raise EnvironmentFailed(
                f"machines of strangers install packages by name and version only; {line[:200]!r} is more than that."
            )


class Environments:
    """Builds under `root`. `pythons` tells the interpreters of other minor versions, when they are known; `in_use`
    the interpreters whose environments must stay."""

    def __init__(
        self, root: Path, pythons: Callable[[], Mapping[str, str]], in_use: Callable[[], Container[str]] = frozenset
    ) -> None:
        self._root = root
        self._pythons = pythons
        self._in_use = in_use
        self._builds: dict[str, asyncio.Task[str]] = {}
        self._waiting: dict[str, int] = {}
        """How many wait for each of them."""
        self.confinement: Confinement | None = None
        """Customers are strangers: environments are built in this sandbox. Where it cannot do that, only wheels are
        installed, of which nothing runs before it is inside; see also `refuse_foreign`."""

    def ready(self, env: EnvSpec) -> str | None:
        """The interpreter, if it is there without any building."""
        if not needs_build(env):
            return sys.executable
        python = self._root / environment_digest(env) / _BIN / _PYTHON
        if not python.exists():
            return None
        with contextlib.suppress(OSError):
            os.utime(self._root / environment_digest(env))
        self._link_package(self._root / environment_digest(env))
        return str(python)

    async def ensure(self, env: EnvSpec) -> str:
        """The interpreter of the environment, built now if need be; however many ask, it is built once, and until
        nobody waits for it any more.

        Raises EnvironmentFailed with uv's own words, or PythonMismatch."""
        found = self.ready(env)
        if found is not None:
            return found
        digest = environment_digest(env)
        while (build := self._builds.get(digest)) is not None and not self._waiting.get(digest):
            await asyncio.wait({build})  # given up, and not at its end yet
        if build is None:
            build = asyncio.ensure_future(self._build(env, digest))
            self._builds[digest] = build
            build.add_done_callback(lambda _task: self._builds.pop(digest, None))
        self._waiting[digest] = self._waiting.get(digest, 0) + 1
        try:
            # One who no longer waits must not end the build of the others.
            return await asyncio.shield(build)
        finally:
            self._waiting[digest] -= 1
            if not self._waiting[digest]:
                del self._waiting[digest]
                build.cancel()

    async def close(self) -> None:
        """End builds that are under way."""
        for build in list(self._builds.values()):
            build.cancel()
            with contextlib.suppress(asyncio.CancelledError, EnvironmentFailed, PythonMismatch):
                await build

    # ------------------------------------------------------------ building

    async def _build(self, env: EnvSpec, digest: str) -> str:
        if self.confinement is not None:
            refuse_foreign(env)
        interpreter = self._interpreter(env)
        uv = uv_program()
        if uv is None:
            raise EnvironmentFailed(
                "this node has no `uv` to build environments with. Install it there with `pip install uv`."
            )
        final = self._root / digest
        building = self._root / f".building-{digest}-{os.getpid()}"
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            shutil.rmtree(building, ignore_errors=True)
            await _run([uv, "venv", "--no-project", "--relocatable", "--python", interpreter, str(building)])
            self._link_package(building)
            if self.confinement is None or not await self._install_inside(self.confinement, uv, env, building):
                await self._install(uv, env, building)
            try:
                os.rename(building, final)
            except OSError:
                if not (final / _BIN / _PYTHON).exists():
                    raise
        except OSError as error:
            raise EnvironmentFailed(
                f"the environment cannot be written to {self._root} on this node: {error.strerror or error}"
            ) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return str(final / _BIN / _PYTHON)

    async def _install_inside(self, confinement: Confinement, uv: str, env: EnvSpec, folder: Path) -> bool:
        """False: it cannot be done in the sandbox, and wheels alone may be installed in another way."""
        from fallow.agent.built_inside import NotInside, install_inside
        from fallow.sandbox.system import interpreter

        python = self._interpreter(env)
        box = folder.with_name(f".building-{folder.name.split('-')[1]}-box-{os.getpid()}")
        try:
            await install_inside(
                confinement,
                uv,
                interpreter() if python == sys.executable else os.path.realpath(python),
                _requirements(env),
                env.allow_sdist,
                box,
                folder,
                BUILD_TIMEOUT_S,
            )
            return True
        except TimeoutError:
            raise EnvironmentFailed(_TOO_LONG) from None
        except NotInside as error:
            why = str(error)
        except EnvironmentFailed as error:
            why = _words(str(error))
            if env.allow_sdist or not any(words in why.lower() for words in PASSING_WORDS):
                raise EnvironmentFailed(why) from None
        if env.allow_sdist:
            raise EnvironmentFailed(
                f"this machine of a stranger's builds no source distributions: {why} Leave allow_sdist=True out, or "
                "have a wheel built and ship pure Python modules with the function."
            )
        log.warning("an environment could not be built in the sandbox; its wheels are installed without it: %s", why)
        return False

    async def _install(self, uv: str, env: EnvSpec, folder: Path) -> None:
        wanted = folder / "requirements.txt"
        wanted.write_text(_requirements(env))
        if self.confinement is not None:
            await self._install_bounded(self.confinement, uv, wanted, folder)
            return
        command = [uv, "pip", "install", "--python", str(folder / _BIN / _PYTHON), "--requirement", str(wanted)]
        if not env.allow_sdist:
            command += ["--only-binary", ":all:"]
        try:
            await _run(command)
        except EnvironmentFailed as error:
            if not any(words in str(error).lower() for words in PASSING_WORDS):
                raise
            log.warning("building an environment failed for the network's sake; once more: %s", error)
            await asyncio.sleep(1.0)
            await _run(command)

    async def _install_bounded(self, confinement: Confinement, uv: str, wanted: Path, folder: Path) -> None:
        """Wheels alone, once: parts of them may be there then, which uv would run with the environment's interpreter.
        With a cache of its own, and within the disk that is lent."""
        from fallow.agent.built_inside import build_quota

        quota = await build_quota(confinement)
        cache = folder / ".cache"
        command = [uv, "pip", "install", "--python", str(folder / _BIN / _PYTHON), "--requirement", str(wanted)]
        command += ["--only-binary", ":all:", "--cache-dir", str(cache)]
        running = asyncio.ensure_future(_run(command))
        try:
            while not (await asyncio.wait({running}, timeout=MEASURE_EVERY_S))[0]:
                if (held := await asyncio.to_thread(tree_bytes, folder)) > quota:
                    raise EnvironmentFailed(
                        f"the environment took {size_words(held)} of disk while it was installed, and "
                        f"{size_words(quota)} are left of what this node lends."
                    )
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})
            await asyncio.to_thread(shutil.rmtree, cache, ignore_errors=True)

    def _interpreter(self, env: EnvSpec) -> str:
        if not env.python or env.python == own_python():
            return sys.executable
        found = self._pythons().get(env.python)
        if found is None:
            raise PythonMismatch(f"this node has no Python {env.python}.")
        return found

    def _link_package(self, folder: Path) -> None:
        """Put the agent's own `fallow`, and nothing else of its packages, on the environment's path."""
        package = Path(fallow.__file__).resolve().parent
        link = folder / "fallow-package" / "fallow"
        if link.is_symlink() and Path(os.readlink(link)) == package:
            return
        link.parent.mkdir(exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            try:
                os.symlink(package, link, target_is_directory=True)
            except OSError:
                # Windows, without the right to make links.
                shutil.copytree(package, link, ignore=shutil.ignore_patterns("__pycache__"))
        for site in _site_folders(folder):
            # Relative to the .pth file's own folder, so that it holds after the environment is moved into place.
            (site / "fallow.pth").write_text(f"{os.path.relpath(link.parent, site)}\n")

    def _sweep(self) -> None:
        """Remove what crashed builds left, and the environments used longest ago."""
        kept: list[tuple[float, Path]] = []
        used = self._in_use()
        for entry in self._root.iterdir():
            if entry.name.startswith(".building-"):
                owner = entry.name.rpartition("-")[2]
                if not (owner.isdigit() and _is_alive(int(owner))):
                    shutil.rmtree(entry, ignore_errors=True)
            elif len(entry.name) == 32 and str(entry / _BIN / _PYTHON) not in used:
                kept.append((entry.stat().st_mtime, entry))
        for _, entry in sorted(kept)[: max(0, len(kept) - KEPT_LIMIT + 1)]:
            shutil.rmtree(entry, ignore_errors=True)


def _requirements(env: EnvSpec) -> str:
    return "".join(f"{line}\n" for line in (*env.requirements, *WORKER_REQUIREMENTS))


_BIN = "Scripts" if sys.platform == "win32" else "bin"
_PYTHON = "python.exe" if sys.platform == "win32" else "python"


def _site_folders(folder: Path) -> list[Path]:
    if sys.platform == "win32":
        return [folder / "Lib" / "site-packages"]
    return list((folder / "lib").glob("python*/site-packages"))


def _is_alive(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _uv_environment() -> dict[str, str]:
    """The agent's own, without what would point uv at the agent's environment."""
    dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON")
    return {
        **{name: value for name, value in os.environ.items() if name not in dropped},
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
    }


async def _run(command: list[str]) -> None:
    """Run uv to its end. Raises EnvironmentFailed with what it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=_uv_environment(),
        cwd=os.path.abspath(os.sep),
    )
    try:
        async with asyncio.timeout(BUILD_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise EnvironmentFailed(_TOO_LONG) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise EnvironmentFailed(_words(stderr.decode(errors="replace")))


_OWN_FILE = re.compile(r"`[^`]*\.building-[^`]*requirements\.txt`(?: at position 0)?")
"""Customers never see the file that the requirements stand in while they are installed."""


def _words(text: str) -> str:
    """What uv said, without its remarks about itself."""
    lines = [line.rstrip() for line in text.splitlines()]
    spoken = "\n".join(line for line in lines if line and not line.startswith(("Using ", "Creating ", "Activate ")))
    spoken = _OWN_FILE.sub("the requirements", spoken)
    if "building from source is disabled" in spoken:
        spoken += "\nEnv(..., allow_sdist=True) lets nodes build it from source."
    return (spoken or "uv failed without a word")[-WORDS_LIMIT:]
