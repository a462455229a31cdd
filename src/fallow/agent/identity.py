"""Who this node is: an Ed25519 key in its home folder, and an id derived from it.

Several agents may share a home: the first takes the folder itself, the others numbered sub-folders, each with a key
of its own, held by a lock on a file for as long as the agent lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.model.errors import SettingError
from fallow.model.ids import NodeId
from fallow.wire.address import write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "node.key"
ID_FILE = "node.id"
LOCK_FILE = "agent.lock"
AGENTS_LIMIT = 256
"""Agents that may share one home."""


class Claim:
    """A folder that no other agent has as long as this is open. Close it to let another agent have it."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def identify(self) -> NodeId:
        """Id of the node that lives here; its key is made if there is none yet. Raises SettingError where the key is
        damaged."""
        return _node_id(self.folder)

    def private_key(self) -> Ed25519PrivateKey:
        """The node's key. Raises SettingError where the file is damaged."""
        return _read_key(self.folder / KEY_FILE)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._lock)


def claim_home(home: Path) -> Claim:
    """Take the first folder of this home that no other agent has.

    Raises SettingError in words when the folder cannot be written."""
    for number in range(1, AGENTS_LIMIT + 1):
        folder = home if number == 1 else home / str(number)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _try_lock(folder / LOCK_FILE)
        except OSError as error:
            raise SettingError(
                f"cannot use {folder} as the agent's home: {error.strerror or error}. Give another with --home."
            ) from None
        if lock is not None:
            return Claim(folder, lock)
    raise SettingError(f"{AGENTS_LIMIT} agents use {home} already. Give this one another home with --home.")


def id_of_key(public_key: bytes) -> NodeId:
    """First 16 hex digits of the SHA-256 of the raw public key (32 bytes)."""
    return NodeId(hashlib.sha256(public_key).hexdigest()[:16])


def _node_id(folder: Path) -> NodeId:
    key_path = folder / KEY_FILE
    id_path = folder / ID_FILE
    if key_path.exists():
        # The id lies beside the key, so that an agent starts without loading the cryptography library.
        with contextlib.suppress(OSError):
            text = id_path.read_text().strip()
            if len(text) == 16 and all(char in "0123456789abcdef" for char in text):
                return NodeId(text)
        public = _public_bytes(_read_key(key_path))
    else:
        public = _make_key(key_path)
    node_id = id_of_key(public)
    write_private(id_path, f"{node_id}\n")
    return node_id


def _make_key(path: Path) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
    return _public_bytes(key)


def _public_bytes(key: Ed25519PrivateKey) -> bytes:
    return bytes(key.public_key().public_bytes_raw())


def _read_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"the node's key {path} cannot be read ({error}). Move it away to let the node take a new identity."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path} is not an Ed25519 key. Move it away to let the node take a new identity.")
    return key


def _try_lock(path: Path) -> int | None:
    """An open descriptor that holds the lock until it is closed (by the end of the process at the latest), or None
    where another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
