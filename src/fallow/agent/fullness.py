"""A node whose disk had no room for a result takes no work for a while, and says so: others are to run its tasks."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from fallow.core.quantities import size_words

log = logging.getLogger("fallow.agent")

CLOSED_S = 5.0
"""Then it is tried again: what was in the way may be gone, and there may be nobody else."""
RESERVE_BYTES = 64 << 20
"""A disk with less than this free is full."""


class Fullness:
    """Of the disk of `folder`. `on_change` is called when `words` say something else."""

    def __init__(self, folder: Path, on_change: Callable[[], None], takes_words: bool) -> None:
        self._folder = folder
        self._on_change = on_change
        self._takes_words = takes_words
        """Workers are believed how large their results were."""
        self.words = ""
        """Why the node takes no work; '' where it does."""

    def met(self, size: int) -> None:
        """A result, or an input, of `size` bytes could not be kept."""
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return
        if self.words or free >= RESERVE_BYTES + (size if self._takes_words else 0):
            return  # it was a limit of the sandbox, or there is room again
        self.words = f"the disk under {self._folder} is full: {size_words(free)} are free"
        log.warning("no room for %s: %s", size_words(size), self.words)
        self._on_change()
        asyncio.get_running_loop().call_later(CLOSED_S, self._try_again)

    def _try_again(self) -> None:
        self.words = ""
        self._on_change()
