"""Classes whose methods run in a pool: what is costly to make is made once per worker.

@app.cls(memory="8GB")
class Model:
    @fallow.enter
    def load(self): self.weights = read(...)

    @fallow.method
    def predict(self, x): ...

for y in Model().predict.map(xs): ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, overload

from fallow.model.errors import SettingError
from fallow.sdk.function import Function
from fallow.sdk.options import Options

F = TypeVar("F", bound=Callable[..., Any])
_ROLE = "__fallow_role__"


@overload
def enter(fn: F) -> F: ...
@overload
def enter() -> Callable[[F], F]: ...
def enter(fn: Any = None) -> Any:
    """Mark a method that runs once in each worker, before its first task. With or without brackets."""
    return _mark(fn, "enter")


@overload
def exit(fn: F) -> F: ...
@overload
def exit() -> Callable[[F], F]: ...
def exit(fn: Any = None) -> Any:
    """Mark a method that runs once in each worker, after its last task. With or without brackets."""
    return _mark(fn, "exit")


@overload
def method(fn: F) -> F: ...
@overload
def method() -> Callable[[F], F]: ...
def method(fn: Any = None) -> Any:
    """Mark a method that can be called in the pool: `.remote`, `.map` and so on, as functions have them. With or
    without brackets."""
    return _mark(fn, "method")


def _mark(fn: Any, role: str) -> Any:
    if fn is None:
        return lambda marked: _mark(marked, role)
    if not callable(fn):
        raise SettingError(
            f"@fallow.{role} takes a method, not {fn!r}, and no settings: those of the class stand in @app.cls(...)."
        )
    setattr(fn, _ROLE, role)
    return fn


class RemoteClass:
    """What `@app.cls` makes of a class. Calling it notes the arguments for the instances that workers make."""

    def __init__(self, klass: type, options: Options, app: str) -> None:
        self.klass = klass
        self.options = options
        self.app = app
        self.__name__ = klass.__name__
        self.__qualname__ = klass.__qualname__
        self.__module__ = klass.__module__
        self.__doc__ = klass.__doc__
        self.roles: dict[str, str] = {}
        for base in reversed(klass.__mro__):
            for name, member in vars(base).items():
                role = getattr(member, _ROLE, None)
                if role is not None:
                    self.roles[name] = role
        if "method" not in self.roles.values():
            raise SettingError(
                f"the class {klass.__name__!r} has no method for the pool: mark those that it should run with "
                "@fallow.method."
            )

    def __getattr__(self, name: str) -> Any:
        if vars(self).get("roles", {}).get(name) == "method":
            words = f"{self.__name__}.{name}: make an instance first, as in {self.__name__}(...).{name}"
            raise AttributeError(words, name=name, obj=self)
        raise AttributeError(f"the class {self.__name__!r} has no {name!r} for the pool", name=name, obj=self)

    def __call__(self, *args: Any, **kwargs: Any) -> RemoteInstance:
        """Raises TypeError where the class does not take these arguments."""
        self._check(args, kwargs)
        return RemoteInstance(self, args, kwargs)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Here, where the mistake was made, and not when the first worker makes its instance."""
        import inspect

        try:
            signature = inspect.signature(self.klass)
        except (TypeError, ValueError):
            return  # it does not say
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.__name__}(): {error}") from None

    def __repr__(self) -> str:
        return f"<fallow class {self.__name__!r}>"

    def __reduce__(self) -> Any:
        if self.is_global:
            return self.__qualname__
        return RemoteClass, (self.klass, self.options, self.app)

    @property
    def is_global(self) -> bool:
        """Whether other processes can import it by its name."""
        if self.__module__ in ("__main__", "__mp_main__") or "<" in self.__qualname__:
            return False
        found: Any = sys.modules.get(self.__module__)
        for part in self.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is self

    def names(self, role: str) -> tuple[str, ...]:
        return tuple(name for name, found in self.roles.items() if found == role)


class RemoteInstance:
    """One set of constructor arguments; its methods have `.remote`, `.map` and so on, and `.local`, which works on an
    instance in this process (made, and entered, at the first local call)."""

    def __init__(self, remote_class: RemoteClass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._class = remote_class
        self._args = args
        self._kwargs = kwargs
        self._here: Any = None
        self._functions: dict[str, Function[Any, Any]] = {}

    def __getattr__(self, name: str) -> Function[Any, Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        function = self._functions.get(name)
        if function is None:
            if self._class.roles.get(name) != "method":
                known = ", ".join(self._class.names("method"))
                raise AttributeError(f"{self._class.__name__} has no method {name!r} for the pool; it has {known}.")
            function = self._functions[name] = self._make(name)
        return function

    def __repr__(self) -> str:
        return f"<fallow instance of {self._class.__name__!r}>"

    def __reduce__(self) -> Any:
        return RemoteInstance, (self._class, self._args, self._kwargs)

    def _make(self, name: str) -> Function[Any, Any]:
        remote_class = self._class
        klass: Any = _ClassByName(remote_class) if remote_class.is_global else remote_class.klass
        return Function(
            _LocalMethod(self, name),
            remote_class.options,
            app=remote_class.app,
            name=f"{remote_class.__name__}.{name}",
            hooks=(klass, self._args, self._kwargs, remote_class.names("enter"), remote_class.names("exit")),
        )

    def local_instance(self) -> Any:
        """The instance of this process."""
        if self._here is None:
            self._here = self._class.klass(*self._args, **self._kwargs)
            for name in self._class.names("enter"):
                getattr(self._here, name)()
        return self._here


class _ClassByName:
    """Stands for the plain class behind a decorated one of an importable module; unpickles as that class."""

    def __init__(self, remote_class: RemoteClass) -> None:
        self._remote_class = remote_class
        self.__qualname__ = remote_class.__qualname__

    def __reduce__(self) -> Any:
        return plain_class, (self._remote_class.__module__, self._remote_class.__qualname__)


def plain_class(module: str, qualname: str) -> type:
    """The plain class of that name, undecorated. Raises ImportError, AttributeError."""
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    klass: type = found.klass if isinstance(found, RemoteClass) else found
    return klass


class _LocalMethod:
    """The method on this process's own instance."""

    def __init__(self, instance: RemoteInstance, name: str) -> None:
        self._instance = instance
        self.__name__ = name
        self.__qualname__ = f"{instance._class.__qualname__}.{name}"
        self.__module__ = instance._class.__module__
        self.__doc__ = getattr(instance._class.klass, name).__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._instance.local_instance(), self.__name__)(*args, **kwargs)
