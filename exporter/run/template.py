"""The pipeline file that ``init`` writes: every key with its default, drawn from the table of keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from exporter.run.keys import SECTIONS, Section
from exporter.run.kinds import Key, toml_text

_HEAD: Final = """\
# A pipeline of resnet-export: `resnet-export run` does it, `--dry-run` says what it would do and why.
# Paths are relative to this file. Lines without a space behind the # are keys that have no value until you give one.
"""


def template() -> str:
    """The text; it reads as a pipeline with every default, and so does it with its keys taken out of the comments."""
    return "\n".join([_HEAD, *("\n".join(_section(section)) + "\n" for section in SECTIONS.values())])


def _section(section: Section) -> Iterator[str]:
    yield f"# {section.help}"
    off = "#" if section.example else ""
    yield f"{off}[{section.name}{'.' * bool(section.example)}{section.example}]"
    for key in section.keys:
        live = key.default is not None or key.required
        value = key.default if key.default is not None else key.example
        yield f"{off if live else '#'}{key.name} = {toml_text(value)}  # {_told(key)}"


def _told(key: Key) -> str:
    return f"{key.help} ({', '.join(key.choices)})" if key.choices else key.help
