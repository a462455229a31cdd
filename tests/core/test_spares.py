"""Which environments have a sandbox in reserve."""

from fallow.core.spares import ENVIRONMENTS_LIMIT, FREE_SHARE, IDLE_S, kept_spares

GB = 10**9


def test_those_asked_for_last_have_one() -> None:
    used = {"a": 10.0, "b": 30.0, "c": 20.0}
    assert kept_spares(used, 31.0, 8 * GB, 16 * GB) == ["b", "c"]
    assert len(kept_spares(used, 31.0, 8 * GB, 16 * GB)) == ENVIRONMENTS_LIMIT


def test_idle_ones_are_given_up() -> None:
    assert kept_spares({"a": 0.0, "b": 1.0}, IDLE_S + 0.5, 8 * GB, 16 * GB) == ["b"]


def test_none_where_memory_is_short() -> None:
    total = 16 * GB
    assert kept_spares({"a": 0.0}, 1.0, int(total * FREE_SHARE) - 1, total) == []
    assert kept_spares({"a": 0.0}, 1.0, int(total * FREE_SHARE), total) == ["a"]
