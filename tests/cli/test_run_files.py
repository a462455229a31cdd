"""Which part of a file `fallow run FILE.py` runs."""

import pytest

from fallow.cli.main import split_command
from fallow.cli.run import choose_function, file_shape
from fallow.model.errors import SettingError

APP = "import fallow\napp = fallow.App('a')\n"
ONE = "@app.function()\ndef one(x): return x\n"
TWO = "@app.function(timeout=3)\ndef two(x): return x\n"


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        ("print(1)", ""),
        ("def helper(): pass\nprint(helper())", ""),
        (APP + ONE, "one"),
        (APP + ONE + TWO + "def main(): pass", "main"),
        (APP + ONE + "if __name__ == '__main__':\n    print(one.remote(1))", ""),
    ],
)
def test_choice(source: str, chosen: str) -> None:
    assert choose_function(file_shape(source)) == chosen


def test_several_functions_need_a_name() -> None:
    with pytest.raises(SettingError, match=r"2 functions \(one, two\)"):
        choose_function(file_shape(APP + ONE + TWO))


def test_a_command_is_taken_away_before_options_are_read() -> None:
    assert split_command(["run", "--out", "d", "--", "wc", "--help", "{}"]) == (
        ["run", "--out", "d"],
        ["wc", "--help", "{}"],
    )
    assert split_command(["jobs", "--", "x"]) == (["jobs", "--", "x"], None)
