"""What strangers' tasks print reaches a customer's terminal as text alone."""

from __future__ import annotations

import pytest

from fallow.core.terminal import harmless, name_words

GONE = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain, with ümläuts, 日本　語 and \t a tab", "plain, with ümläuts, 日本　語 and \t a tab"),
        ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[2J\x1b[Hcleared", f"{GONE}[2J{GONE}[Hcleared"),
        ("\x1b]0;title\x07", f"{GONE}]0;title{GONE}"),
        ("\x1b]52;c;cm0gLXJmIH4=\x07pasted", f"{GONE}]52;c;cm0gLXJmIH4={GONE}pasted"),
        ("\x9b2J\x9d0;title\x9c", f"{GONE}2J{GONE}0;title{GONE}"),
        ("10 %\r20 %\r30 %\n", "30 %"),
        ("two\nlines", f"two{GONE}lines"),
        ("\x1b[31\x1b[31m", f"{GONE}[31\x1b[31m"),
    ],
)
def test_nothing_that_steers_a_terminal_is_left(line: str, shown: str) -> None:
    assert harmless(line) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("crawl", "crawl"),
        ("\x1b[31mred\x1b[0m [link=x]y[/z]", "red [link=x]y[/z]"),
        ("two\nlines\x1b]0;mine\x07", f"two lines{GONE}]0;mine{GONE}"),
        ("x" * 100_000, "x" * 59 + "…"),
    ],
)
def test_a_strangers_name_is_one_short_line(name: str, shown: str) -> None:
    assert name_words(name) == shown
