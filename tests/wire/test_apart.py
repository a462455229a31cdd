"""A page taken apart gives the same items, each made by itself."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fallow.wire.apart import Item, NotTakenApart, take_apart
from fallow.wire.page import decode_page, encode_inputs

MADE: list[int] = []


class Noted:
    """Says when it is unpickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, int]) -> None:
        MADE.append(state["number"])
        self.__dict__.update(state)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(slots=True)
class Slotted:
    x: int
    y: list[int] = field(default_factory=list)


class Listed(list[int]):
    label = ""


class Mapped(dict[str, int]):
    label = ""


class WithNames:
    def __new__(cls, *, value: int) -> WithNames:
        self = super().__new__(cls)
        self.value = value
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"value": self.value}


def pages(items: list[Any]) -> list[Item]:
    found = decode_page(b"".join(bytes(part) for part in encode_inputs(items)), load=take_apart)
    assert all(type(item) is Item for item in found)
    return found  # type: ignore[return-value]


def test_no_other_item_is_unpickled() -> None:
    items = pages([Noted(number) for number in range(5)])
    MADE.clear()
    assert items[3].make().number == 3
    assert MADE == [3]


def test_items_of_every_kind_come_out_as_they_went_in() -> None:
    listed, mapped = Listed([1, 2]), Mapped(a=1)
    listed.label = mapped.label = "kept"
    items: list[Any] = [
        None, True, 7, 1 << 70, 1.5, "ä", b"b", bytearray(b"c"), (1, (2,)), [1, [2]], {"a": {1, 2}}, frozenset({3}),
        Colour.BLUE, Slotted(1, [2]), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), decimal.Decimal("1.10"),
        fractions.Fraction(1, 3), uuid.UUID(int=5), pathlib.PurePosixPath("a/b"), collections.OrderedDict(a=1),
        collections.Counter("aab"), collections.deque([1, 2], 3), range(3), slice(1, 2), complex(1, 2),
        re.compile("a+"), ValueError("no"), int, len, np.float32(2.5), np.dtype("f4"),
    ]  # fmt: skip
    found = pages(items)
    for at in reversed(range(len(items))):
        made = found[at].make()
        assert type(made) is type(items[at])
        assert repr(made) == repr(items[at])
    made = [item.make() for item in pages([listed, mapped, WithNames(value=4), collections.defaultdict(list, a=[1])])]
    assert (made[0], made[0].label, made[1], made[1].label) == ([1, 2], "kept", {"a": 1}, "kept")
    assert made[2].value == 4
    assert made[3]["b"] == []


def test_functions_and_classes_by_value_and_what_refers_to_itself() -> None:
    class Local:
        def __init__(self, n: int) -> None:
            self.n = n
            self.me = self

        def double(self) -> int:
            return 2 * self.n

    def add(x: int, y: int = 3) -> int:
        return x + y

    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    circle: list[Any] = [1]
    circle.append((circle, {"again": circle}))
    found = pages([Local(4), Local(5), add, fib, functools.partial(add, 1), lambda: fib(5), circle])
    assert found[6].make()[1][1]["again"][0] == 1
    assert found[5].make()() == 5
    assert found[4].make()() == 4
    assert found[3].make()(7) == 13
    assert found[2].make()(2) == 5
    second = found[1].make()
    assert second.double() == 10
    assert second.me is second
    assert found[0].make().double() == 8


def test_arrays_lie_in_the_page_still() -> None:
    big = np.arange(100_000)
    page = bytearray().join(encode_inputs([(np.arange(3), big), {"same": big}]))
    found: Any = decode_page(page, load=take_apart)
    small, made = found[0].make()
    assert small.tolist() == [0, 1, 2]
    assert np.array_equal(made, big)
    assert not made.flags.owndata
    made[0] = 9
    assert found[1].make()["same"][0] == 9


def test_what_items_share_each_has_for_itself() -> None:
    shared = [Noted(1)]
    found = pages([shared, shared, [shared, shared]])
    MADE.clear()
    both = found[2].make()
    assert both[0] is both[1]
    assert MADE == [1]
    assert found[0].make()[0].number == 1


def test_what_an_item_raises_is_its_own() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    found = pages([Broken(), Noted(2)])
    assert found[1].make().number == 2
    with pytest.raises(ValueError, match="no number"):
        found[0].make()


def test_what_it_does_not_know_it_says() -> None:
    with pytest.raises(NotTakenApart):
        take_apart(pickle.dumps({"no": "list"}), buffers=())
    protocol_0 = b"(lp0\n(i__main__\nOld\np1\na."
    with pytest.raises(NotTakenApart):
        take_apart(protocol_0, buffers=())
    with pytest.raises((EOFError, IndexError, pickle.UnpicklingError)):
        take_apart(pickle.dumps([1, 2])[:-3], buffers=())
