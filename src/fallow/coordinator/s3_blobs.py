"""Blobs in a bucket of an S3 service, through presigned URLs: clients and nodes talk to the service itself.

    <prefix>/<first two characters>/<digest>    a blob
    <prefix>/.trash/<digest>                    one that no job needed when the collection looked
    <prefix>/.pool-id                           whose bucket (or prefix of one) it is

S3 cannot delete on condition that an object is still old. So a blob is copied aside before it is deleted, and copied
back where a job turns out to need it after all; what is aside is deleted for good an hour later.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from fallow.coordinator.blob_store import LiveAmong
from fallow.core.room import Room
from fallow.model.errors import FallowError, PoolUnreachable, SettingError
from fallow.wire.blob_files import Buffer, is_digest
from fallow.wire.blob_http import S3_SKIP_S

URL_LIFETIME_S = 900
"""A transfer that has begun goes on beyond it."""
COMMIT_WITHIN_S = 900.0
"""The longest time from putting a blob, or finding it there, to committing the job that names it."""
TRASH_KEPT_S = 3600.0
LISTED = 1000
_READ_BYTES = 4 << 20

TRASH = ".trash"
POOL_ID = ".pool-id"

_FORM = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT, with a key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WORDS = {
    "NoSuchBucket": "there is no such bucket: create it first",
    "InvalidBucketName": "that cannot be the name of a bucket",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "AccessDenied": "this key may not do that: it must be allowed to list, read, write and delete",
    "RequestTimeTooSkewed": "this machine's clock and the service's are too far apart",
    "AuthorizationHeaderMalformed": "the region is another: add region=NAME",
    "InternalError": "the service is in trouble of its own, such as a full disk: its log says more",
    "PermanentRedirect": "the bucket lies in another region: add region=NAME",
}


class S3Blobs:
    """`url`: s3://[KEY:SECRET@]BUCKET[/PREFIX][?endpoint=URL&region=NAME&virtual=true]. A BlobStore."""

    folder = ""
    nonce = ""
    remove_after_s = remove_least_s = S3_SKIP_S + COMMIT_WITHIN_S

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket, self._prefix = parts.hostname or "", parts.path.strip("/")
        self.where = f"s3://{bucket}" + (f"/{self._prefix}" if self._prefix else "")
        self._endpoint = options.pop("endpoint", "")
        region, virtual = options.pop("region", ""), options.pop("virtual", "").lower() in ("1", "true", "yes")
        if options:
            raise SettingError(f"blobs in {self.where}: {', '.join(options)} is no option. Expected {_FORM}.")
        if not bucket:
            raise SettingError(f"blobs in {self.where or url!r}: expected {_FORM}.")
        if self._endpoint and not re.match(r"https?://[^/]+", self._endpoint):
            raise SettingError(
                f"blobs in {self.where}: the endpoint {self._endpoint!r} does not begin with http:// or https://. "
                f"Expected {_FORM}."
            )
        config: dict[str, Any] = {"virtual_hosted_style_request": virtual}
        if self._endpoint:
            config |= {"endpoint": self._endpoint, "region": region or "us-east-1"}
        elif region:
            config |= {"region": region}
        if parts.username:
            config |= {"access_key_id": unquote(parts.username), "secret_access_key": unquote(parts.password or "")}
        self._store = S3Store(
            bucket,
            prefix=self._prefix or None,
            client_options={
                "allow_http": self._endpoint.startswith("http://"),
                "connect_timeout": "5s",
                "timeout": "60s",
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
            **config,
        )
        self._clock = clock or self._service_unix_s

    # ------------------------------------------------------------ serving

    def prepare(self, pool_id: str) -> None:
        """Put, list, get and delete an object, and see to it that no other pool uses the place."""
        # Of its own: coordinators that start together would delete each other's.
        probe = f"{TRASH}/probe-{secrets.token_hex(8)}"
        with self._worded("write"):
            obstore.put(self._store, probe, b"probe")
        with self._worded("list"):
            next(iter(obstore.list(self._store, prefix=TRASH, chunk_size=1)), None)
        read = b""
        with self._worded("read"), contextlib.suppress(FileNotFoundError):
            read = bytes(obstore.get_range(self._store, probe, start=1, length=2))
        with self._worded("delete"):
            obstore.delete(self._store, probe)
        with self._worded("write"):
            owner = self._owner(pool_id)
        if read != b"ro":
            raise SettingError(f"blobs in {self.where}: the service does not give back what was put there.")
        if owner != pool_id:
            raise SettingError(
                f"blobs in {self.where} belong to another pool ({owner}), and two pools there would delete each "
                f"other's. Name another prefix. If that pool is gone for good, delete {self.where}/{POOL_ID} and "
                "start again."
            )

    def _owner(self, pool_id: str) -> str:
        try:
            return bytes(obstore.get(self._store, POOL_ID).bytes()).decode()
        except FileNotFoundError:
            obstore.put(self._store, POOL_ID, pool_id.encode())
            return bytes(obstore.get(self._store, POOL_ID).bytes()).decode()

    def is_at(self, where: str, nonce: str) -> bool:
        return where == self.where

    def renew(self) -> None:
        """There is nothing of one coordinator in the bucket."""

    async def start(self) -> None:
        """The service serves."""

    async def stop(self) -> None:
        """Nothing is held open."""

    def sign(self, method: str, digest: str, size: int) -> str | None:
        if method not in ("GET", "PUT", "HEAD") or not is_digest(digest) or size < 0:
            raise ValueError(f"no URL for {method} of {digest!r}, {size} bytes")
        return obstore.sign(self._store, cast(Any, method), _path(digest), timedelta(seconds=URL_LIFETIME_S))

    # ------------------------------------------------------------ copies, for backups

    def digests(self) -> Iterator[str]:
        with self._worded("list"):
            for batch in obstore.list(self._store, chunk_size=LISTED):
                for entry in batch:
                    name = entry["path"].rpartition("/")[2]
                    if is_digest(name) and entry["path"] == _path(name):
                        yield name

    def size_of(self, digest: str) -> int | None:
        try:
            with self._worded("read"):
                return int(obstore.head(self._store, _path(digest))["size"])
        except FileNotFoundError:
            return None

    def read(self, digest: str) -> Iterator[Buffer]:
        with self._worded("read"):
            for chunk in obstore.get(self._store, _path(digest)).stream(min_chunk_size=_READ_BYTES):
                yield memoryview(chunk)

    def write(self, digest: str, source: Path) -> None:
        with source.open("rb") as file, self._worded("write"):
            obstore.put(self._store, _path(digest), file)

    # ------------------------------------------------------------ deleting

    def is_alone(self) -> None:
        """Its times are those of presigned URLs, whoever is there."""

    def room(self) -> Room | None:
        return None

    def is_there(self, digest: str) -> bool:
        return True

    def note_garbage(self, fresh: Sequence[str], garbage: Sequence[str]) -> None:
        """A bucket has room: what is forgotten here is found by `collect`."""

    def take_left_garbage(self) -> Sequence[str]:
        return ()

    def remove(self, digests: Sequence[str], needed: Callable[[str], bool]) -> tuple[int, Sequence[str]]:
        with self._worded("delete"):
            before = self._clock() - self.remove_after_s
            return sum(self._put_aside(digest, before) for digest in digests if not needed(digest)), ()

    def collect_orphans(self, live_among: LiveAmong, needed: Callable[[str], bool], older_than_s: float) -> int:
        """`collect` finds them."""
        return 0

    def renew_used(self, digests: Sequence[str]) -> None:
        """`collect` leaves them alone for days."""

    def collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        """`older_than_s` below S3_SKIP_S + COMMIT_WITHIN_S is taken for that."""
        with self._worded("delete"):
            return self._collect(live_among, older_than_s)

    def _collect(self, live_among: LiveAmong, older_than_s: float) -> int:
        now = self._clock()
        before = now - max(older_than_s, self.remove_after_s)
        deleted = 0
        trouble: Exception | None = None
        for batch in obstore.list(self._store, chunk_size=LISTED):
            found = [(entry["path"], entry["path"].rpartition("/")[2], entry["last_modified"]) for entry in batch]
            aside = [(name, at) for path, name, at in found if path == f"{TRASH}/{name}" and is_digest(name)]
            old = [name for path, name, at in found if is_digest(name) and path == _path(name) and _unix_s(at) < before]
            names = {*old, *(name for name, _ in aside)}
            live = set(live_among(sorted(names))) if names else set()
            for name, at in aside:
                self._settle(name, name in live, _unix_s(at) < now - TRASH_KEPT_S)
            # A full disk has no room for copies: then what is aside since long must go all the same.
            for name in old if trouble is None else ():
                try:
                    deleted += name not in live and self._put_aside(name, before)
                except (BaseError, OSError) as error:
                    trouble = error
                    break
        if trouble is not None:
            raise trouble
        return deleted

    def _put_aside(self, digest: str, before: float) -> bool:
        """Copy, look at its age once more, delete."""
        try:
            if self._modified(digest) >= before:
                return False
            obstore.copy(self._store, _path(digest), f"{TRASH}/{digest}")
            if self._modified(digest) >= before:
                return False
            obstore.delete(self._store, _path(digest))
        except FileNotFoundError:
            return False
        return True

    def _settle(self, digest: str, is_live: bool, is_old: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            if is_live:
                if self.size_of(digest) is None:
                    obstore.copy(self._store, f"{TRASH}/{digest}", _path(digest))
                obstore.delete(self._store, f"{TRASH}/{digest}")
            elif is_old:
                obstore.delete(self._store, f"{TRASH}/{digest}")

    def _modified(self, digest: str) -> float:
        return _unix_s(obstore.head(self._store, _path(digest))["last_modified"])

    def _service_unix_s(self) -> float:
        """By the clock that ages are by, whatever this machine's says."""
        probe = f"{TRASH}/clock"
        obstore.put(self._store, probe, b"")
        return _unix_s(obstore.head(self._store, probe)["last_modified"])

    # ------------------------------------------------------------ words

    @contextlib.contextmanager
    def _worded(self, step: str) -> Iterator[None]:
        """Errors in words; that an object is not there stays FileNotFoundError."""
        try:
            yield
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise
            raise self._in_words(error, step) from error

    def _in_words(self, error: Exception, step: str) -> FallowError:
        words = " ".join(str(error).split())
        code = _CODE.search(words)
        at = f" at {self._endpoint}" if self._endpoint else ""
        if code is not None and code[1] in _WORDS:
            return SettingError(
                f"blobs cannot be kept in {self.where}{at}: {_WORDS[code[1]]} (tried to {step} an object)."
            )
        if code is None and re.search("credential|instance metadata|169.254", words, re.IGNORECASE):
            # Without a key the library asks the machine's cloud for one; most have none.
            return SettingError(f"blobs cannot be kept in {self.where}: no key was found. Expected {_FORM}.")
        if code is None and re.search("error sending request|connect|timed? ?out|dns", words, re.IGNORECASE):
            return PoolUnreachable(
                f"blobs cannot be kept in {self.where}: no S3 service answers{at}. Is it running, and is the endpoint "
                "right?"
            )
        reason = code[1] if code is not None else words[:300]
        return SettingError(f"blobs cannot be kept in {self.where}{at}: {reason} (tried to {step} an object).")


def _path(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def _unix_s(modified: datetime) -> float:
    return modified.astimezone(UTC).timestamp()
