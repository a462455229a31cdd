"""What the children of a supervisor do, and the lock that keeps a second supervisor of the same state away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fallow.cli.full_disk import full_disk_in_words
from fallow.model.errors import FallowError
from fallow.wire.address import PoolAddress

LOOPBACK = "127.0.0.1"


class HomeLock:
    """Held while what the folder is for runs, so that two started at the same moment do not both."""

    def __init__(self, folder: Path, name: str = "up.lock") -> None:
        self._path = folder / name
        self.fd = -1

    def take(self) -> bool:
        """False if another process has it."""
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        import fcntl

        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def coordinator_body(
    address: PoolAddress,
    store: str,
    blobs: str,
    name: str,
    embedded: bool,
    http: tuple[str, int] = (LOOPBACK, 0),
    coordinator: str = "",
    health: str = "",
    identity: Path | None = None,
    account_limit: Sequence[str] = (),
) -> Callable[[Callable[[], None]], int]:
    def body(ready: Callable[[], None]) -> int:
        from fallow.cli.account_limits import account_limits
        from fallow.coordinator.main import CoordinatorOptions, run_coordinator

        options = CoordinatorOptions(
            address=address,
            store_url=store,
            blob_dir=Path(blobs),
            blobs=blobs,
            name=name,
            embedded=embedded,
            http_host=http[0],
            http_port=http[1],
            coordinator=coordinator,
            health=health,
            identity=identity,
            limits=account_limits(account_limit),
            ready=ready,
        )
        return _in_words(lambda: run_coordinator(options), Path(blobs))

    return body


def agent_body(
    address: PoolAddress, name: str, slots: int, home: Path, scratch: Path | None = None
) -> Callable[[Callable[[], None]], int]:
    def body(ready: Callable[[], None]) -> int:
        from fallow.agent.main import AgentOptions, run_agent

        options = AgentOptions(address, name, slots, home, scratch is not None, ready, scratch)
        return _in_words(lambda: run_agent(options), scratch or home)

    return body


def _in_words(run: Callable[[], int], folder: Path) -> int:
    try:
        with full_disk_in_words(folder):
            return run()
    except (FallowError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        # The stores' errors are no FallowError (agents and scripts never see them), but they are words as well.
        if type(error).__module__.startswith("fallow."):
            print(error, file=sys.stderr)
            return 1
        raise
