"""Words of a command line become arguments, by the function's signature."""

import enum
from pathlib import Path
from typing import Any, Literal

import pytest

from fallow.cli.arguments import convert, parse_call, usage_words
from fallow.model.errors import SettingError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def score(x: int, y: float = 1.5, *, name: str = "a", fast: bool = False, tags: list[str] | None = None) -> Any:
    return x, y, name, fast, tags


def test_positional_and_named_arguments_are_converted_by_annotation() -> None:
    assert parse_call(score, ["3", "2", "--name", "7", "--fast"]) == ([3, 2.0], {"name": "7", "fast": True})
    assert parse_call(score, ["--x=3"]) == ([], {"x": 3})
    assert parse_call(score, ["3", "--tags", "a,b"]) == ([3], {"tags": ["a", "b"]})
    assert parse_call(score, ["3", "--tags", "none"]) == ([3], {"tags": None})
    assert parse_call(score, ["-3"]) == ([-3], {})


def test_flags_may_be_told_or_denied() -> None:
    assert parse_call(score, ["1", "--fast", "false"]) == ([1], {"fast": False})
    assert parse_call(score, ["1", "--no-fast"]) == ([1], {"fast": False})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["three"], "x must be int, not 'three'"),
        (["3", "--depth", "4"], "no parameter --depth"),
        (["3", "--y"], "--y needs a value"),
        (["3", "--y", "1", "--y", "2"], "given twice"),
        ([], "missing a required argument: 'x'"),
        (["1", "2", "3"], "takes no argument '3'"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        parse_call(score, words)


def test_values_without_annotation_are_literals_where_they_are_ones() -> None:
    def free(a, b="x", *rest, **more):  # type: ignore[no-untyped-def]
        return a, b, rest, more

    assert parse_call(free, ["[1, 2]", "word", "3.5", "--any", "None"]) == ([[1, 2], "word", 3.5], {"any": None})


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("4", int | None, 4),
        ("none", int | None, None),
        ("4", int | str, 4),
        ("four", int | str, "four"),
        ("RED", Colour, Colour.RED),
        ("fast", Literal["fast", "slow"], "fast"),
        ("a/b", Path, Path("a/b")),
        ("1,2", tuple[int, ...], (1, 2)),
        ("yes", bool, True),
        ("{'a': 1}", dict, {"a": 1}),
    ],
)
def test_conversion(text: str, hint: Any, value: Any) -> None:
    assert convert("--v", text, hint) == value


@pytest.mark.parametrize(("text", "hint"), [("x", int | None), ("GREEN", Colour), ("mid", Literal["a"]), ("ja", bool)])
def test_conversion_refuses_in_words(text: str, hint: Any) -> None:
    with pytest.raises(SettingError, match="--v must be"):
        convert("--v", text, hint)


def test_usage_names_every_parameter() -> None:
    assert usage_words(score).startswith("Usage: --x INT [--y FLOAT] [--name STR]")
