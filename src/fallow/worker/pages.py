"""Results on their way out: cut into pages, hashed, and written to a file where they are large."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import blake3

from fallow.model.job import INLINE_LIMIT_BYTES
from fallow.wire.page import Buffer, Failure, encode_results, page_size, split_unserialisable
from fallow.worker.orders import WrittenPage

TARGET_BYTES = INLINE_LIMIT_BYTES * 15 // 16
FAILED_LIST_LIMIT = 256
"""As wire.messages has it: indices of failed tasks that a page names."""
_FIRST_GUESS_BYTES = 16
_LARGE_BYTES = 64 * 1024


class PageWriter:
    """`prefix` begins the name of every file in `folder`."""

    def __init__(self, folder: str, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._serial = 0
        self._item_bytes: float = _FIRST_GUESS_BYTES
        self.plain = False
        """As plain data alone; set for each order."""
        self.files_from = INLINE_LIMIT_BYTES
        """Larger pages go into files; set for each order."""
        self.no_room: list[tuple[int, int, str]] = []
        """As orders.Report has it: tasks whose results could not be kept, until they are reported."""

    @property
    def page_tasks(self) -> int:
        """Results that a page holds, as far as the last ones tell."""
        return int(TARGET_BYTES / self._item_bytes)

    def write(
        self, start: int, values: list[Any], failures: Mapping[int, Failure], strict: bool = False
    ) -> list[WrittenPage]:
        """Pages of the results from task `start` on; `failures` by task number. A value that cannot be encoded
        becomes a Failure, or raises UnserialisableResult where `strict`. One for which there is no room on the disk is
        left out, and named in `no_room`."""
        pages: list[WrittenPage] = []
        at = 0
        while at < len(values):
            count = self._count(values[at])
            while True:
                part = values[at : at + count] if at or count < len(values) else values
                first = start + at
                found = _within(failures, first, len(part))
                segments, found = _encode(part, found, strict, self.plain)
                size = page_size(segments)
                self._item_bytes = max(1.0, size / len(part))
                if size <= INLINE_LIMIT_BYTES or len(part) == 1:
                    break
                count = max(1, min(len(part) // 2, int(TARGET_BYTES / self._item_bytes)))
            failed = sorted(first + offset for offset in found)
            try:
                pages.append(self._page(first, first + len(part), segments, failed))
            except OSError as error:  # (what does not go inline is one result)
                self.no_room.append((first, size, _no_room(size, error)))
            at += len(part)
        return pages

    def write_reduced(self, start: int, stop: int, value: Any) -> list[WrittenPage]:
        """The combined result of tasks [start, stop): a page of one item. None where the disk has no room for it: the
        first of the tasks is named in `no_room`, and the others go back as if they had not been begun."""
        segments, found = _encode([value], {}, False, self.plain)
        try:
            return [self._page(start, stop, segments, list(range(start, stop)) if found else [])]
        except OSError as error:
            size = page_size(segments)
            self.no_room.append((start, size, _no_room(size, error)))
            return []

    def _count(self, value: Any) -> int:
        size = self._item_bytes
        if (rough := rough_bytes(value)) > _LARGE_BYTES:
            size = max(size, rough)
        return max(1, int(TARGET_BYTES / size))

    def _page(self, start: int, stop: int, segments: Sequence[Buffer], failed: list[int]) -> WrittenPage:
        digest = blake3.blake3()
        for segment in segments:
            digest.update(segment)
        size = page_size(segments)
        data, path = None, ""
        if size > self.files_from:
            try:
                path = self._write_file(segments)
            except OSError:
                if size > INLINE_LIMIT_BYTES:
                    raise
        if not path:
            data = bytes(segments[0]) if len(segments) == 1 else b"".join(segments)
        return WrittenPage(
            start, stop, digest.hexdigest(), size, data, path, len(failed), tuple(failed[:FAILED_LIST_LIMIT])
        )

    def _write_file(self, segments: Sequence[Buffer]) -> str:
        self._serial += 1
        path = os.path.join(self._folder, f"{self._prefix}-{self._serial}.page")
        try:
            with open(path, "wb", buffering=0) as file:
                for segment in segments:
                    view = memoryview(segment)
                    while len(view):
                        view = view[file.write(view) :]
        except OSError:
            # Half a page is of no use, and would leave no room for the next.
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return path


def _no_room(size: int, error: OSError) -> str:
    return f"the node could not keep a result of {size:,} bytes: {error}"


def rough_bytes(value: Any, depth: int = 3) -> int:
    """A cheap lower guess of how large a value is, from its first elements; 0 for what is not known."""
    kind = type(value)
    try:
        if kind in (bytes, str, bytearray):
            return len(value)
        if kind in (list, tuple, dict):
            if not value or not depth:
                return 8
            first = next(iter(value.values())) if kind is dict else value[0]
            return len(value) * (8 + rough_bytes(first, depth - 1))
        size = getattr(value, "nbytes", 0)
    except Exception:  # other threads of the task may change it, and attributes may do anything
        return 0
    return size if isinstance(size, int) else 0


def _within(failures: Mapping[int, Failure], first: int, count: int) -> dict[int, Failure]:
    if not failures:
        return {}
    return {index - first: failure for index, failure in failures.items() if first <= index < first + count}


def _encode(
    part: list[Any], found: dict[int, Failure], strict: bool, plain: bool
) -> tuple[list[Buffer], dict[int, Failure]]:
    try:
        return encode_results(part, found, plain), found
    except Exception:
        if strict:
            raise
    values = [None if offset in found else value for offset, value in enumerate(part)]
    bad = split_unserialisable(values, plain=plain)
    found = {
        **found,
        **{offset: Failure("unserialisable", error.where, str(error)) for offset, error in bad.items()},
    }
    return encode_results(values, found, plain), found
