"""`fallow store`: moving, upgrading, backing up and restoring what a pool knows."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.model.errors import SettingError
from fallow.wire.address import home_dir

if TYPE_CHECKING:
    from fallow.coordinator.blob_store import BlobStore

ATTEMPTS = 3
"""Times that a backup is taken anew because jobs ended, with their blobs, while it was copied."""

Say = Callable[[str], None]


def own_store() -> str:
    """URL of the store that `fallow up` makes in this home."""
    return f"sqlite:///{home_dir() / 'pool' / 'store.sqlite'}"


def own_blobs() -> str:
    """The blob folder that `fallow up` makes in this home."""
    return str(home_dir() / "pool" / "blobs")


def blob_copies_of(file: Path) -> Path:
    """The folder of blobs that belongs to a backup."""
    return file.with_name(f"{file.name}.blobs")


def run_migrate(source: str, target: str, blobs_from: str = "", blobs_to: str = "", say: Say = print) -> None:
    """Move a pool's truth, and its blobs where `blobs_to` says whither. Raises FallowError in words."""
    with _in_words():
        from fallow.store.migrate import migrate

        if blobs_to:  # first, and again where it was cut short: until the truth has moved, the pool is where it was
            _copy_over(source or own_store(), blobs_from or own_blobs(), blobs_to, say)
        moved = migrate(source or own_store(), target, say)
    if moved.rows:
        where = without_key(blobs_to or blobs_from or own_blobs())
        say(f"Its blobs are in {where}: start the pool's coordinators with that as --blobs.")
    say(f"Moved to {moved.target}. Start the pool's coordinators with --store and its URL; running jobs go on.")


def _copy_over(store_url: str, source: str, target: str, say: Say) -> None:
    """Put every blob of one blob store into another, each checked by its digest."""
    from fallow.coordinator.blob_copies import copy_in, copy_out
    from fallow.store.migrate import what_is_needed

    pool_id, needed = what_is_needed(store_url)
    old, new = _blob_store(source), _blob_store(target)
    if old.where == new.where:
        raise SettingError(f"blobs in {old.where} cannot be moved to the same place: leave --blobs-to out.")
    missing = [digest for digest in needed if old.size_of(digest) is None]
    if missing:
        raise SettingError(
            f"{old.where} lacks {len(missing)} of the blobs that the pool's jobs need (the first: {missing[0][:16]}). "
            "Is it where the pool keeps them? Name that place with --blobs-from."
        )
    _prepare(new, pool_id)
    if old.folder:
        copied = copy_in(Path(old.folder), new, needed, say)
    else:
        with tempfile.TemporaryDirectory(prefix="fallow-blobs-") as folder:
            copy_out(old, Path(folder), needed, say)
            copied = copy_in(Path(folder), new, needed, say)
    say(f"{copied.copied} blobs put into {new.where} ({copied.kept} were there).")


def _prepare(store: BlobStore, pool_id: str) -> None:
    if store.folder:
        Path(store.folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    else:
        store.prepare(pool_id)


def without_key(url: str) -> str:
    """For people: a URL of blobs without the secret that may stand in it."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.partition('@')[2] or rest}" if found else url


def run_upgrade(url: str, say: Say = print) -> None:
    """Bring a store's schema up to date. Raises FallowError in words."""
    with _in_words():
        from fallow.store.upgrade import upgrade_store

        before, after = upgrade_store(url or own_store())
    say(f"The schema is up to date ({after})." if before == after else f"Upgraded from {before or 'none'} to {after}.")


def run_backup(url: str, blobs: str, file: Path, with_blobs: bool, say: Say = print) -> None:
    """Write a backup, and the blobs beside it. Raises FallowError in words."""
    with _in_words():
        from fallow.store.backup import backup

        source = url or own_store()
        folder = blob_copies_of(file)
        for _ in range(ATTEMPTS):
            if with_blobs:
                # Blobs first: those of the moment in which the store is read are then nearly all there.
                _copy_out(blobs, folder, (), say)
            manifest = backup(source, file, time.time())
            missing = _copy_out(blobs, folder, manifest.digests, say) if with_blobs else ()
            if not missing:
                break
        else:
            raise SettingError(
                f"{len(missing)} blobs that jobs need are not in the blob store (the first: {missing[0][:16]}). "
                "--blobs the one that the pool uses? Without them: --no-blobs."
            )
    rows = sum(table.rows for table in manifest.tables)
    say(f"Backed up {rows} rows of {manifest.source} to {file}" + (f", blobs to {folder}." if with_blobs else "."))


def run_restore(file: Path, url: str, blobs: str, with_blobs: bool, say: Say = print) -> None:
    """Fill an empty store from a backup. Raises FallowError in words."""
    with _in_words():
        from fallow.store.backup import read_manifest, restore

        manifest = read_manifest(file)
        if with_blobs:
            from fallow.coordinator.blob_copies import copy_in

            store = _blob_store(blobs)
            _prepare(store, manifest.pool_id)
            copied = copy_in(blob_copies_of(file), store, manifest.digests, say)
            say(f"{copied.copied} blobs put into {store.where} ({copied.kept} were there).")
        restore(file, url or own_store(), say)
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_unix_s))
    say(f"Restored as of {taken}. Start the pool's coordinators; running jobs go on.")


def _copy_out(blobs: str, folder: Path, needed: tuple[str, ...], say: Say) -> tuple[str, ...]:
    from fallow.coordinator.blob_copies import copy_out

    store = _blob_store(blobs)
    if store.folder and not Path(store.folder).is_dir():
        raise SettingError(
            f"there is no blob folder {store.folder}. Name it with --blobs, or leave it out: --no-blobs."
        )
    copied = copy_out(store, folder, needed, say)
    if copied.copied:
        say(f"{copied.copied} blobs copied ({copied.kept} were there).")
    return copied.missing


def _blob_store(blobs: str) -> BlobStore:
    from fallow.coordinator.blob_store import open_blob_store

    return open_blob_store(blobs or own_blobs(), "")


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """The stores' errors as FallowError: agents and scripts never see them, so they are none by themselves."""
    from fallow.store.protocol import StoreError

    try:
        yield
    except StoreError as error:
        raise SettingError(str(error)) from error
