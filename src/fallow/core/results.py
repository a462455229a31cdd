"""Result pages as the core sees them: bounds and counts, never bytes."""

from __future__ import annotations

import msgspec

from fallow.model.parts import FAILED_LIST_LIMIT, ResultPage


def narrow(page: ResultPage, start: int, stop: int) -> ResultPage:
    """The page with [start, stop) as what is valid of it. Where the list of failures was cut, the count is kept
    only for a whole page, and is otherwise what the list shows."""
    if (start, stop) == (page.start, page.stop):
        return page
    failed = tuple(i for i in page.failed if start <= i < stop)
    cut = page.failed_count > len(page.failed)
    count = min(stop - start, page.failed_count) if cut else len(failed)
    return msgspec.structs.replace(page, start=start, stop=stop, failed=failed[:FAILED_LIST_LIMIT], failed_count=count)
