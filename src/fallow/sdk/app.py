"""An app: a name, and the functions that go by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from fallow.model.errors import SettingError
from fallow.sdk.function import Function
from fallow.sdk.options import Options, Retry, check_callable, read_options
from fallow.sdk.script_end import hook_errors

if TYPE_CHECKING:
    from fallow.sdk.env import Env

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class App:
    """Groups functions. `env` is the environment of those that name none of their own."""

    def __init__(self, name: str = "app", *, env: Env | None = None) -> None:
        if not isinstance(name, str) or not name.strip() or len(name) > 100:
            raise SettingError(f"App({name!r}): the name must be a text of 1 to 100 characters.")
        hook_errors()
        self.name = name
        self.env = read_options(env=env).env
        self.functions: dict[str, Function[Any, Any]] = {}

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    @overload
    def function(self, fn: Callable[P, R], /) -> Function[P, R]: ...

    @overload
    def function(
        self,
        *,
        timeout: float | None = None,
        retries: int | Retry | None = None,
        cpu: int | None = None,
        memory: str | int | None = None,
        gpu: str | int | float | Iterable[str] | None = None,
        env: Env | None = None,
        max_nodes: int | None = None,
        speculate: bool = True,
        sandbox: str | None = None,
        network: bool = False,
        name: str | None = None,
    ) -> Callable[[Callable[P, R]], Function[P, R]]: ...

    def function(self, fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:  # type: ignore[misc]
        """Make a function one that runs in a pool.

        timeout: seconds per task. retries: attempts after the first for tasks that raise or run out of time, a number
        or fallow.Retry(...). cpu: CPU slots of one task. memory: limit of one worker, '2GB'. gpu: '24GB', 'H100:2', a
        list of models, or a part of one (0.25, 'A100:0.5'). env: fallow.Env(...). max_nodes: nodes that work on one job
        at most. speculate=False: no task is run twice at the end to save time. sandbox: the least that it runs in:
        'process' (machines of one's own alone), 'isolated', 'kernel' or 'machine'; results out of a sandbox are plain
        data. Left out, it is 'isolated' where the pool has strangers' machines. network=True: public addresses from
        inside the sandbox."""
        checked = self._options(options)

        def decorate(fn: Callable[..., Any]) -> Function[Any, Any]:
            if isinstance(fn, Function):
                raise SettingError(f"{fn.name!r} is decorated already: leave one @app.function out.")
            check_callable(fn, "@app.function")
            function: Function[Any, Any] = Function(fn, checked, app=self.name, name=name or "")
            self.functions[function.name] = function
            return function

        return decorate if fn is None else decorate(fn)

    def cls(self, klass: Any = None, /, **options: Any) -> Any:
        """Make a class one whose methods run in a pool, with one instance per worker. See fallow.enter, fallow.exit
        and fallow.method. Options as for `function`."""
        from fallow.sdk.cls import RemoteClass

        checked = self._options(options)

        def decorate(klass: type) -> RemoteClass:
            if not isinstance(klass, type):
                raise SettingError(f"@app.cls takes a class, not {klass!r}. Use @app.function for functions.")
            return RemoteClass(klass, checked, self.name)

        return decorate if klass is None else decorate(klass)

    def _options(self, options: dict[str, Any]) -> Options:
        try:
            checked = read_options(**options)
        except TypeError as error:
            words = str(error).replace("read_options()", "@app.function")
            raise SettingError(
                f"{words}. The options are timeout, retries, cpu, memory, gpu, env, max_nodes, speculate, sandbox, "
                "network and name."
            ) from None
        if checked.env is None and self.env is not None:
            checked = checked.updated(env=self.env)
        return checked
