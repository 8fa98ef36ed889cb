"""Pipeline file and command line -> :class:`Settings`, or one line about what is wrong and where."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exporter.run.keys import SECTIONS, Section
from exporter.run.kinds import Key
from exporter.run.places import line_of
from exporter.run.runtimes import FILES
from exporter.run.settings import Settings, frozen, whole
from runtimes.errors import InputError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Override:
    """A value of the command line.

    Attributes:
        given: How the user said it, for messages: ``--opset`` or ``--set onnx.opset``.
        address: ``section.key``, or ``engine.NAME.key``.
        text: The value, as text.
    """

    given: str
    address: str
    text: str


def read_pipeline(file: Path, overrides: Iterable[Override] = ()) -> Settings:
    """Read a pipeline.

    Args:
        file: TOML; paths in it are relative to its folder.
        overrides: Go over what the file says, in order; paths in them are relative to the working directory.

    Raises:
        InputError: The file cannot be read, a name is unknown, a value is of another type or out of range, or values
            contradict each other; the message names the line.
    """
    text = _text(file)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{file} is not TOML: {first_line(error)}") from error
    found = _Reader(file, text).tables(document)
    for override in overrides:
        _apply(found, override)
    tables: _Tables = {name: {} for name, section in SECTIONS.items() if not section.example} | found
    for name, table in tables.items():
        for key in SECTIONS[name.partition(".")[0]].keys:
            if key.required and key.name not in table:
                raise InputError(f'{file}: {name}.{key.name} is missing: give [{name}] {key.name} = "{key.example}"')
            table.setdefault(key.name, key.default)
    # A default is relative to the file, as it stands in for a line of it.
    folder = Path(whole("path", tables["output"]["folder"], file.parent))
    tables["output"]["folder"] = str(folder.resolve())  # people read it, and `..` in it tells them nothing
    settings = Settings(file, frozen(tables))
    settings.check()
    return settings


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file} cannot be read ({reason}): make one with resnet-export init {file}") from error


class _Reader:
    """Checks one parsed file; every refusal names its line."""

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._text = file, text

    def tables(self, document: Mapping[str, Any]) -> _Tables:
        found: _Tables = {}
        for name, value in document.items():
            section = SECTIONS.get(name)
            if section is None:
                raise self._error((name,), f"there is no section '{name}': {nearest(name, SECTIONS)}")
            if not isinstance(value, dict):
                raise self._error((name,), f"{name} is {shown(value)}, expected a table: [{_title(section)}]")
            if section.example:
                for each, table in value.items():
                    found[f"{name}.{each}"] = self._named(section, each, table)
            else:
                found[name] = self._table(section, value, (name,))
        return found

    def _named(self, section: Section, name: str, table: object) -> dict[str, Any]:
        where = (section.name, name)
        if not isinstance(table, dict):
            told = f"{'.'.join(where)} is {shown(table)}, expected a table with a name: [{_title(section)}]"
            raise self._error(where, told)
        if wrong := _wrong_name(section, name):
            raise self._error(where, wrong)
        return self._table(section, table, where)

    def _table(self, section: Section, table: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
        found = {}
        for name, value in table.items():
            key = section.key(name)
            if key is None:
                told = f"{'.'.join(where)} has no key '{name}': {nearest(name, [each.name for each in section.keys])}"
                raise self._error((*where, name), told)
            try:
                found[name] = _placed(key, key.check(value), self._file.parent)
            except ValueError:
                told = f"{'.'.join((*where, name))} is {shown(value)}, expected {key.expects}"
                raise self._error((*where, name), told) from None
        return found

    def _error(self, address: tuple[str, ...], told: str) -> InputError:
        line = line_of(self._text, address)
        return InputError(f"{self._file}, line {line}: {told}" if line else f"{self._file}: {told}")


def _apply(tables: _Tables, override: Override) -> None:
    """Put a value of the command line over the file's."""
    table, _, name = override.address.rpartition(".")
    first, _, rest = table.partition(".")
    section = SECTIONS.get(first)
    if section is None or bool(rest) != bool(section.example):
        titles = [_title(each) for each in SECTIONS.values()]
        told = nearest(table or override.address, titles)
        raise InputError(f"{override.given}: there is no section '{table or override.address}': {told}")
    key = section.key(name)
    if key is None:
        told = nearest(name, [each.name for each in section.keys])
        raise InputError(f"{override.given}: {table} has no key '{name}': {told}")
    if rest and (wrong := _wrong_name(section, rest)):
        raise InputError(f"{override.given}: {wrong}")
    try:
        value = key.check(key.read(override.text))
    except ValueError:
        raise InputError(f"{override.given}: received '{override.text}', expected {key.expects}") from None
    tables.setdefault(table, {})[name] = _placed(key, value, Path())


def _placed(key: Key, value: Any, base: Path) -> Any:
    return whole(key.kind, value, base) if key.kind in ("path", "source") else value


def _wrong_name(section: Section, name: str) -> str | None:
    """Why a table cannot have a name; ``None`` where it can."""
    if section.name == "runtime":
        return None if name in FILES else f"there is no runtime '{name}': {nearest(name, FILES)}"
    if _NAME.fullmatch(name):
        return None
    return f"'{name}' cannot be a file's name: give letters, digits, - and _"


def _title(section: Section) -> str:
    return f"{section.name}.NAME" if section.example else section.name


def nearest(name: str, known: Iterable[str]) -> str:
    """The names that come closest, and all that there are."""
    all_of = list(known)
    near = difflib.get_close_matches(name, all_of, n=1)
    return (f"the nearest is {near[0]}; " if near else "") + f"there are {', '.join(all_of)}"


def shown(value: object, limit: int = 60) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
