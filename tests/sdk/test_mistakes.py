"""What is said to those who call a function of the pool wrongly. No pool is needed for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fallow
from fallow.model.errors import FallowError, SettingError

app = fallow.App("mistakes")


@app.function()
def area(width: int, height: int = 1) -> int:
    return width * height


@app.cls()
class Model:
    @fallow.method
    def predict(self, x: int) -> int:
        return x

    def other(self) -> None: ...


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: area.map(), "area.map() missing 1 required positional argument: 'inputs'"),
        (lambda: area.map([1], chunksize=2), "area.map() got an unexpected keyword argument 'chunksize'"),
        (lambda: area.for_each([1], order=2), "area.for_each() got an unexpected keyword argument 'order'"),
        (lambda: area.starmap([(1, 2)], timeout=2), "area.starmap has no option 'timeout'; it has detached, "),
        (lambda: Model(5), "Model(): too many positional arguments"),  # type: ignore[call-arg]
        (lambda: Model(size=5), "Model(): got an unexpected keyword argument 'size'"),  # type: ignore[call-arg]
    ],
)
def test_arguments_that_do_not_fit_are_named_as_customers_know_them(call: Callable[[], object], words: str) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value).startswith(words)


def test_a_mistake_inside_is_not_reworded() -> None:
    def wrong() -> None:
        raise TypeError("Function._map() is what it says")

    area_here = app.function()(wrong)
    with pytest.raises(TypeError, match=r"^Function._map\(\) is what it says$"):
        area_here.local()


@pytest.mark.parametrize("inputs", [(5,), ([1], 5), (5, [1]), ("abc",), ([1], "a")])
def test_inputs_that_are_none(inputs: tuple[object, ...]) -> None:
    with pytest.raises(SettingError, match=r"^area\.map: "):
        area.map(*inputs)


def test_a_method_of_the_class_itself_says_how_to_get_at_it() -> None:
    with pytest.raises(AttributeError, match=r"make an instance first, as in Model\(\.\.\.\)\.predict"):
        _ = Model.predict.map  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'Model' has no 'other' for the pool"):
        _ = Model.other
    assert not hasattr(Model, "__wrapped__")


@pytest.mark.parametrize("options", [{"speculate": "no"}, {"retries": "x"}, {"timeout": 0}, {"timeout": -1}])
def test_options_that_are_none(options: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        app.function(**options)  # type: ignore[call-overload]


def test_what_a_retry_is_for() -> None:
    for kinds in (3, ["x"], [3]):
        with pytest.raises(SettingError, match="is not an exception type"):
            fallow.Retry(1, retry_on=kinds)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["./mine", "../mine", "~/mine", "."])
def test_requirements_that_lie_on_this_machine(text: str) -> None:
    with pytest.raises(FallowError, match="is a path of this script's, and nodes do not see it"):
        fallow.Env(pip=[text])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="that is a folder"):
        fallow.File(tmp_path)
