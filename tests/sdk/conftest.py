"""The SDK against a real pool: `connected` makes this process a client of the module's pool."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pool import MARK, Pool, wait_for_none


@pytest.fixture(scope="module")
def connected(pool: Pool) -> Iterator[Pool]:
    from fallow.sdk.client import disconnect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FALLOW_URL", pool.url)
        patch.setenv("FALLOW_HOME", str(pool.home))
        patch.setenv("FALLOW_PROGRESS", "0")
        disconnect()
        yield pool
        disconnect()


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a script with a pool of its own, as a user without any pool would; nothing may be left of it."""
    mark = f"sdk-{os.getpid()}-{tmp_path.name}"
    home = tmp_path / "home"

    def run(source: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(source))
        env = {name: value for name, value in os.environ.items() if not name.startswith("FALLOW_")}
        env |= {"FALLOW_HOME": str(home), "FALLOW_SLOTS": "2", MARK: mark, **variables}
        done = subprocess.run(
            [sys.executable, str(path), *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=110
        )
        wait_for_none(mark)
        return done

    return run
