from __future__ import annotations

import functools
import threading
import traceback
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fallow.model.errors import PythonMismatch, UnserialisableFunction
from fallow.wire.code import ClassHooks, dump_function, load_function
from fallow.wire.offender import find_offender


def run_main(source: str, path: Path) -> types.ModuleType:
    """Run a script as __main__ is run."""
    path.write_text(source)
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), vars(module))
    return module


def test_styles() -> None:
    def add(a: int, b: int = 10, c: int = 100) -> int:
        return a + b + c

    assert load_function(dump_function(add, style="map")).call(1) == 111
    assert load_function(dump_function(add, style="map", kwargs={"c": 0})).call(1) == 11
    assert load_function(dump_function(add, style="star", kwargs={"c": 0})).call((1, 2)) == 3
    assert load_function(dump_function(add, style="call")).call(((1,), {"b": 2})) == 103


def test_a_plain_call_has_no_wrapper() -> None:
    assert load_function(dump_function(len)).call is len


def test_coroutine_functions_run_to_their_end() -> None:
    async def double(x: int) -> int:
        return 2 * x

    call = load_function(dump_function(double)).call
    assert [call(1), call(2)] == [2, 4]


def test_reduce_and_retry_on_travel() -> None:
    loaded = load_function(dump_function(lambda x: x, reduce=lambda a, b: a + b, retry_on=(KeyError,)))
    assert loaded.reduce is not None
    assert loaded.reduce(1, 2) == 3
    assert loaded.retry_on == (KeyError,)
    assert load_function(dump_function(len)).retry_on == (Exception,)


def test_tracebacks_show_the_authors_file_and_lines_though_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    source = "# one\n\ndef helper(x):\n    return 1 / x  # the line\n\ndef work(x):\n    return helper(x)\n"
    module = run_main(source, path)
    payload = dump_function(module.work)
    path.unlink()
    call = load_function(payload).call
    with pytest.raises(ZeroDivisionError) as caught:
        call(0)
    text = "".join(traceback.format_exception(caught.value))
    assert f'File "{path}", line 4, in helper\n    return 1 / x  # the line' in text
    assert f'File "{path}", line 7, in work\n    return helper(x)' in text
    assert "# one" not in "".join(map(str, msgspec.msgpack.decode(payload)))


def test_two_versions_of_a_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    first = load_function(dump_function(run_main("def work(x):\n    return 1 / x  # old\n", path).work))
    import linecache

    linecache.clearcache()
    load_function(dump_function(run_main("def work(x):\n    return 2 / x  # new\n", path).work))
    first.show_sources()
    with pytest.raises(ZeroDivisionError) as caught:
        first.call(0)
    assert "# old" in "".join(traceback.format_exception(caught.value))


class TestClasses:
    def test_methods_of_one_class_share_an_instance(self) -> None:
        class Model:
            def __init__(self, base: int) -> None:
                self.base = base
                self.log: list[str] = []

            def load(self) -> None:
                self.log.append("enter")

            def unload(self) -> None:
                self.log.append("exit")

            def add(self, x: int) -> int:
                return self.base + x

            def seen(self, x: int) -> list[str]:
                return self.log

        hooks = ClassHooks(Model, (5,), {}, ("load",), ("unload",))
        add = load_function(dump_function(Model.add, cls_hooks=hooks))
        seen = load_function(dump_function("seen", cls_hooks=tuple(hooks)))
        assert add.call(1) == 6
        add.close()
        assert seen.call(0) == ["enter"]
        log = seen.call(0)
        seen.close()
        assert log == ["enter", "exit"]


def test_another_minor_version_is_refused_in_words() -> None:
    fields = msgspec.msgpack.decode(dump_function(len))
    fields[3] = "3.99"
    with pytest.raises(PythonMismatch, match=r"packed by Python 3\.99"):
        load_function(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("value", [None, 3, "text"])
def test_what_is_not_callable_is_refused(value: Any) -> None:
    with pytest.raises(UnserialisableFunction, match="not callable"):
        dump_function(value)


class TestOffenders:
    def fails(self, fn: Any, **settings: Any) -> str:
        with pytest.raises(UnserialisableFunction) as caught:
            dump_function(fn, **settings)
        return str(caught.value)

    def test_open_file_in_a_closure(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.touch()
        with path.open() as f:
            text = self.fails(lambda x: f.read(), name="work")
        assert "closure variable 'f' of" in text
        assert f"an open file '{path}'" in text
        assert text.startswith("'work' cannot be sent")

    def test_global(self, tmp_path: Path) -> None:
        source = "import threading\nx = {'a': [threading.Lock()]}\ndef work(i):\n    return x\n"
        text = self.fails(run_main(source, tmp_path / "m.py").work)
        assert "global 'x' used by 'work' -> ['a'] -> [0] is a lock" in text

    def test_attribute_of_a_bound_object(self) -> None:
        class Holder:
            def __init__(self) -> None:
                self.lock = threading.Lock()

            def work(self, x: int) -> int:
                return x

        assert "bound to -> attribute 'lock' is a lock" in self.fails(Holder().work)

    def test_partial_and_arguments(self) -> None:
        lock = threading.Lock()
        assert "the partial's argument 0 is a lock" in self.fails(functools.partial(max, lock))
        assert "['lock'] is a lock" in self.fails(len, kwargs={"lock": lock})

    def test_self_reference_ends(self) -> None:
        items: list[Any] = [threading.Lock()]
        items.insert(0, items)
        where, what = find_offender(items)
        assert (where, what) == ("[1]", "a lock or thread (_thread.lock)")

    def test_an_object_that_refuses_by_itself(self) -> None:
        class Stubborn:
            def __reduce__(self) -> str:
                raise TypeError("no")

        where, what = find_offender([Stubborn()])
        assert where == "[0]"
        assert "Stubborn" in what
