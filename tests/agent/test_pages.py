"""The cache of input pages: finds what covers a lease, names what it has, and stays within its bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fallow.agent.pages import NAMED_LIMIT, PageCache, cover
from fallow.model.ids import Digest, JobId
from fallow.model.job import Blob
from fallow.model.parts import InputPage

JOB = JobId("job-aaaaaa")


def page(start: int, stop: int, size: int = 10) -> InputPage:
    return InputPage(start, stop, Blob(Digest("d"), size, b"x" * size))


def test_pages_that_cover_a_lease_are_found_in_order() -> None:
    cache = PageCache()
    cache.add(JOB, (page(10, 20), page(0, 10), page(20, 30)))
    assert cache.find(JOB, 5, 25) == (page(0, 10), page(10, 20), page(20, 30))
    assert cache.find(JOB, 12, 13) == (page(10, 20),)
    assert cache.find(JOB, 25, 31) is None
    assert cache.find(JobId("job-bbbbbb"), 0, 1) is None


def test_a_gap_is_not_covered() -> None:
    cache = PageCache()
    cache.add(JOB, (page(0, 10), page(20, 30)))
    assert cache.find(JOB, 5, 25) is None
    assert cache.find(JOB, 12, 15) is None
    assert not cover((page(0, 10), page(20, 30)), 5, 25)
    assert cover((page(10, 30), page(0, 10)), 5, 25)


def test_the_pages_used_longest_ago_go_first() -> None:
    cache = PageCache(limit_bytes=3 * 1310)
    for start in range(0, 30, 10):
        cache.add(JOB, (page(start, start + 10, 1000),))
    assert cache.find(JOB, 0, 10) is not None
    cache.add(JOB, (page(30, 40, 1000),))
    assert cache.find(JOB, 10, 20) is None
    assert cache.find(JOB, 0, 10) is not None
    assert cache.size_bytes <= 3 * 1310


def test_a_page_larger_than_the_bound_is_kept_while_it_is_the_newest() -> None:
    cache = PageCache(limit_bytes=100)
    cache.add(JOB, (page(0, 10, 5000),))
    assert cache.find(JOB, 0, 10) is not None
    cache.add(JOB, (page(10, 20, 5000),))
    assert cache.find(JOB, 0, 10) is None


def test_few_pages_are_named_and_a_forgotten_job_has_none() -> None:
    cache = PageCache()
    for start in range(100):
        cache.add(JOB, (page(start, start + 1),))
    assert cache.named(JOB) == tuple(range(100 - NAMED_LIMIT, 100))
    cache.forget_job(JOB)
    assert cache.named(JOB) == ()
    assert cache.size_bytes == 0


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 30), st.integers(0, 30))
def test_it_finds_exactly_what_a_dictionary_would(starts: list[int], first: int, length: int) -> None:
    cache = PageCache(limit_bytes=10 * 320)
    for start in starts:
        cache.add(JOB, (page(start, start + 1),))
    kept = set(list(dict.fromkeys(reversed(starts)))[:10])
    found = cache.find(JOB, first, first + length)
    if length:
        assert (found is not None) == all(index in kept for index in range(first, first + length))
