"""node.toml: what the owner of the machine sets, read and checked, and changed without losing a comment."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from fallow.core.setting_keys import BY_PATH, KEYS, SECTIONS, Key
from fallow.model.errors import SettingError
from fallow.model.lending import LendingSettings
from fallow.wire.address import write_private

FILE_NAME = "node.toml"
SIZE_LIMIT_BYTES = 256 * 1024
_HEADER = re.compile(r"\s*\[\s*([A-Za-z_]+)\s*\]")


def settings_path(agent_home: Path) -> Path:
    """One file for all agents that share a home."""
    return agent_home / FILE_NAME


def load_settings(path: Path) -> LendingSettings:
    """What the file says; the defaults where there is none. Raises SettingError with file, line, what was found and
    what is expected."""
    try:
        text = _read(path)
    except FileNotFoundError:
        return LendingSettings()
    return parse_settings(text, path)


def parse_settings(text: str, path: Path) -> LendingSettings:
    """Raises SettingError, as load_settings does."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} cannot be read: {error}. {_SYNTAX}") from None
    sections: dict[str, Any] = {}
    for section, body in document.items():
        if section not in SECTIONS:
            known = [*SECTIONS, *BY_PATH]
            raise SettingError(
                f"{_where(text, path, '', section)}: there is no section {section!r}.{_meant(section, known)}"
            )
        if not isinstance(body, dict):
            raise SettingError(f"{_where(text, path, '', section)}: {section!r} is a section: write [{section}].")
        values: dict[str, Any] = {}
        for name, value in body.items():
            values.update(_value(text, path, section, name, value))
        sections[section] = msgspec.structs.replace(getattr(LendingSettings(), section), **values)
    settings = LendingSettings(**sections)
    _check(settings, text, path)
    return settings


_SYNTAX = 'Write lines such as  idle = "3 min"  under a section such as  [owner].'


def _value(text: str, path: Path, section: str, name: str, value: Any) -> dict[str, Any]:
    where = _where(text, path, section, name)
    key = BY_PATH.get(f"{section}.{name}")
    if key is None:
        names = [key.name for key in KEYS if key.section == section]
        elsewhere = next((key.section for key in KEYS if key.name == name), "")
        hint = f" It belongs under [{elsewhere}]." if elsewhere else _meant(name, names)
        raise SettingError(f"{where}: [{section}] has no key {name!r}.{hint}")
    try:
        return {key.field: key.read(value)}
    except ValueError as error:
        raise SettingError(f"{where}: {key.path} is {_shown(value)}; {error}.") from None


def _check(settings: LendingSettings, text: str, path: Path) -> None:
    """What single values cannot tell."""
    owner, heat = settings.owner, settings.heat
    if owner.resume_cpu_share > owner.busy_cpu_share:
        raise SettingError(
            f"{_where(text, path, 'owner', 'resume_cpu', 'busy_cpu')}: owner.resume_cpu is above owner.busy_cpu, "
            "so that work would pause and go on at once. Let it be the smaller one."
        )
    if heat.cpu_limit_c and heat.resume_below_c >= heat.cpu_limit_c:
        raise SettingError(
            f"{_where(text, path, 'heat', 'resume_below', 'cpu_limit')}: heat.resume_below is not below "
            "heat.cpu_limit. Let there be some degrees between them."
        )
    if settings.price.limit_per_kwh and not settings.price.source:
        raise SettingError(
            f"{_where(text, path, 'price', 'limit_per_kwh')}: price.limit_per_kwh needs "
            'price.source: a file that holds the price, or "! command" that prints it.'
        )


# ---------------------------------------------------------------- changing


def default_text() -> str:
    """The file as the first join writes it: every key with its default, commented out."""
    lines = [
        "# What this machine lends, and when. Every key stands here with its default; take the # away to change one.",
        "# `fallow node limits` shows what is in force; changes are taken in by `fallow node reload`.",
    ]
    settings = LendingSettings()
    for section, about in SECTIONS.items():
        lines += ["", f"# {about}", f"[{section}]"]
        for key in KEYS:
            if key.section == section:
                lines.append(f"# {key.about}")
                lines.append(f"#{key.name} = {_toml(key.of(settings))}")
    return "\n".join(lines) + "\n"


def write_defaults(path: Path) -> bool:
    """Write the file if there is none; says whether it did. Raises SettingError where it cannot be written."""
    if path.exists():
        return False
    _write(path, default_text())
    return True


def change_settings(path: Path, changes: list[str]) -> LendingSettings:
    """Take in 'section.key=value's, all or none, keep every comment, and return what is in force then. An empty value
    puts the default back. Raises SettingError."""
    try:
        text = _read(path)
    except FileNotFoundError:
        text = default_text()
    parse_settings(text, path)
    for change in changes:
        name, equals, given = change.partition("=")
        key = find_key(name.strip())
        if not equals:
            raise SettingError(f"{change!r}: write {key.path}=VALUE, as in {key.path}={_example(key)}")
        text = _edited(text, key, _given(key, given.strip()))
    settings = parse_settings(text, path)
    _write(path, text)
    return settings


def find_key(name: str) -> Key:
    """By 'section.key', or by the key alone where only one section has it. Raises SettingError with a suggestion."""
    if name in BY_PATH:
        return BY_PATH[name]
    alone = [key for key in KEYS if key.name == name]
    if len(alone) == 1:
        return alone[0]
    raise SettingError(
        f"there is no setting {name!r}.{_meant(name, [*BY_PATH, *(key.name for key in KEYS)])} "
        "`fallow node limits` lists all."
    )


def _given(key: Key, text: str) -> Any:
    """The words of a command line as the file would hold them. None: the default."""
    if text == "":
        return None
    name = key.kind.name
    value: Any = text
    if name == "flag":
        value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
            text.lower(), text
        )
    elif name in ("number", "whole"):
        try:
            value = int(text) if name == "whole" else float(text)
        except ValueError:
            value = text
    elif name == "list":
        value = [part.strip().strip("\"'") for part in _items(key, text.strip("[]"))]
    try:
        key.read(value)
    except ValueError as error:
        raise SettingError(f"{key.path}={text}: {error}.") from None
    return value


def _items(key: Key, text: str) -> list[str]:
    """Hours hold commas themselves ('sat,sun 00:00-24:00'): a new one begins after a time."""
    if key.name == "hours":
        return [part for part in re.split(r"(?<=\d)[\"']?\s*[,;]\s*", text) if part.strip()]
    return [part for part in text.split(",") if part.strip()]


def _edited(text: str, key: Key, value: Any) -> str:
    import tomlkit

    document = tomlkit.parse(text)
    section = document.get(key.section)
    if section is not None and key.name in section:
        if value is None:
            section.remove(key.name)
        else:
            section[key.name] = value
        return tomlkit.dumps(document)
    if value is None:
        return text
    lines = text.splitlines()
    at = _line(lines, key.section, key.name, commented=True)
    if at is not None:
        # Where its default stood, so that the words about it stay beside it.
        lines[at] = f"{key.name} = {_toml(value)}"
        return "\n".join(lines) + "\n"
    if section is None:
        document.add(key.section, tomlkit.table())
    document[key.section].add(key.name, value)
    return tomlkit.dumps(document)


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False)


def _example(key: Key) -> str:
    shown = key.of(LendingSettings())
    text = ",".join(shown) or "..." if isinstance(shown, list) else str(shown)
    return f'"{text}"' if " " in text else text


# ---------------------------------------------------------------- words


def _line(lines: list[str], section: str, name: str, commented: bool = False) -> int | None:
    """Number, from 0, of the line where a key or (section '') a section stands."""
    prefix = r"\s*#\s*" if commented else r"\s*"
    wanted = re.compile(rf"{prefix}[\"']?{re.escape(name)}[\"']?\s*=")
    here = ""
    for at, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            here = header[1]
            if not section and here == name:
                return at
        elif here == section and wanted.match(line):
            return at
    return None


def _where(text: str, path: Path, section: str, *names: str) -> str:
    lines = text.splitlines()
    for name in names:
        at = _line(lines, section, name)
        if at is not None:
            return f"{path}, line {at + 1}"
    return str(path)


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f" Did you mean {close[0]!r}?" if close else f" There are {', '.join(known)}." if len(known) < 20 else ""


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()[: SIZE_LIMIT_BYTES + 1]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(data) > SIZE_LIMIT_BYTES:
        raise SettingError(f"{path} is larger than {SIZE_LIMIT_BYTES >> 10} KiB: this is no settings file.")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SettingError(f"{path} is no text in UTF-8.") from None


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror or error}.") from None
