"""Objects that were put into the pool once: mapped from the node's cache and decoded once per worker."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from typing import Any

from fallow.wire.page import decode_page
from fallow.worker.nested import blob_path

CACHED_OBJECTS = 16

_cache: OrderedDict[str, Any] = OrderedDict()
_lock = threading.Lock()


def get_object(digest: str, size: int) -> Any:
    """The single item of the page with this digest. Its large arrays lie in the mapped file, shared by all workers of
    the node, and are read-only. Raises as nested.blob_path does, and what unpickling raises."""
    with _lock:
        if digest in _cache:
            _cache.move_to_end(digest)
            return _cache[digest]
        descriptor = os.open(blob_path(digest, size), os.O_RDONLY | os.O_CLOEXEC)
        try:
            (item,) = decode_page(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
        _cache[digest] = item
        if len(_cache) > CACHED_OBJECTS:
            _cache.popitem(last=False)
        return item
