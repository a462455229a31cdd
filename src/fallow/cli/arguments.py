"""From words of a command line to the arguments of a function, by its signature and annotations."""

from __future__ import annotations

import ast
import enum
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fallow.model.errors import SettingError

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def parse_call(fn: Callable[..., Any], words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments for `fn` from words such as `--depth 3 --fast file.txt`.

    Values are converted by annotations (without one: a Python literal where it is one, else text). Raises
    SettingError that names the parameter, what it got and what it wants."""
    signature = inspect.signature(fn)
    hints = _hints(fn)
    parameters = signature.parameters
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    name_of_fn = getattr(fn, "__name__", "the function")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    ordered = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    spread = next((p for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            key = flag.replace("-", "_")
            hint: Any = hints.get(key, inspect.Parameter.empty)
            if (
                key not in parameters
                and key.startswith("no_")
                and _is_bool(hints.get(key[3:]), parameters.get(key[3:]))
            ):
                named[key[3:]] = False
                continue
            if key not in parameters and not takes_any_name:
                raise SettingError(f"{name_of_fn} has no parameter --{flag}. {usage_words(fn)}")
            if key in named:
                raise SettingError(f"--{flag} is given twice.")
            if _is_bool(hint, parameters.get(key)) and not equals:
                given = rest[0].lower() if rest else ""
                named[key] = convert(f"--{flag}", rest.pop(0), bool) if given in _TRUE | _FALSE else True
                continue
            if not equals:
                if not rest:
                    raise SettingError(f"--{flag} needs a value. {usage_words(fn)}")
                value = rest.pop(0)
            named[key] = convert(f"--{flag}", value, hint)
        else:
            parameter = ordered[len(positional)] if len(positional) < len(ordered) else spread
            if parameter is None:
                raise SettingError(f"{name_of_fn} takes no argument {word!r}. {usage_words(fn)}")
            positional.append(convert(parameter.name, word, hints.get(parameter.name, inspect.Parameter.empty)))
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise SettingError(f"{name_of_fn}: {error}. {usage_words(fn)}") from None
    return positional, named


def beside(klass: type, method: str) -> tuple[tuple[str, ...], Callable[..., Any]]:
    """The names of the parameters that an object of the class is made with, and what stands for the method as far as
    parse_call looks at it: it takes these as well, by name. Raises SettingError where both want the same name."""
    function = getattr(klass, method)
    own = [*inspect.signature(function).parameters.values()][1:]
    makes = [p for p in inspect.signature(klass).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    both = {p.name for p in own} & {p.name for p in makes}
    name = f"{klass.__name__}.{method}"
    if both:
        raise SettingError(
            f"{' and '.join(sorted(both))} of {name} cannot be told from what {klass.__name__} is made with: both have "
            "that name. Give the class another, or write a function that makes and calls it."
        )

    def call(*_args: Any, **_kwargs: Any) -> None: ...

    call.__name__ = name
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in makes]
    rest = [p for p in own if p.kind is p.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*(p for p in own if p not in rest), *named, *rest])  # type: ignore[attr-defined]
    call.__annotations__ = {**_hints(inspect.getattr_static(klass, "__init__")), **_hints(function)}
    return tuple(p.name for p in makes), call


def _hints(fn: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn)
    except Exception:  # names that exist for type checkers alone
        return {}


def usage_words(fn: Callable[..., Any]) -> str:
    """'Usage: --x INT [--y FLOAT]'."""
    parts = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = parameter.annotation
        wanted = (
            ""
            if annotation is parameter.empty
            else annotation
            if isinstance(annotation, str)
            else _type_name(annotation)
        )
        part = f"--{parameter.name.replace('_', '-')} {(wanted or 'value').upper()}"
        parts.append(part if parameter.default is parameter.empty else f"[{part}]")
    return f"Usage: {' '.join(parts)}" if parts else "It takes no arguments."


def convert(what: str, text: str, hint: Any) -> Any:
    """The text as a value of that annotation. Raises SettingError naming `what`."""
    if hint is inspect.Parameter.empty or hint is Any or hint is object:
        return _literal(text)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(what, text, arguments)
    if origin is typing.Literal:
        for choice in arguments:
            if str(choice) == text:
                return choice
        raise SettingError(f"{what} must be one of {', '.join(map(str, arguments))}, not {text!r}.")
    if origin is typing.Annotated:
        return convert(what, text, arguments[0])
    if origin in (list, tuple, set, frozenset) or hint in (list, tuple, set, frozenset):
        kind = origin or hint
        item = arguments[0] if arguments else inspect.Parameter.empty
        pieces = [piece for piece in text.split(",") if piece != ""]
        return kind(convert(what, piece.strip(), item) for piece in pieces)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint[text]
        except KeyError:
            raise SettingError(f"{what} must be one of {', '.join(hint.__members__)}, not {text!r}.") from None
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise SettingError(f"{what} must be true or false, not {text!r}.")
    if hint is str:
        return text
    if hint is bytes:
        return text.encode()
    if hint in (int, float, complex, Path):
        try:
            return hint(text)
        except ValueError:
            raise SettingError(f"{what} must be {_type_name(hint)}, not {text!r}.") from None
    value = _literal(text)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise SettingError(f"{what} wants a {hint.__name__}, which cannot be given as {text!r} on a command line.")
    return value


def _convert_union(what: str, text: str, choices: Sequence[Any]) -> Any:
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    # Text takes anything, so it comes last.
    ordered = sorted((c for c in choices if c is not type(None)), key=lambda c: c is str)
    for choice in ordered:
        try:
            return convert(what, text, choice)
        except SettingError:
            continue
    raise SettingError(f"{what} must be {' or '.join(map(_type_name, ordered))}, not {text!r}.")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_bool(hint: Any, parameter: inspect.Parameter | None) -> bool:
    return hint is bool or (parameter is not None and isinstance(parameter.default, bool))


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)
