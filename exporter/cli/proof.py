"""What parity, evaluate and bench have in common: models on runtimes, images, and the report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calibration.images import BadFile

_Command = TypeVar("_Command", bound=Callable[..., Any])

SPECS = """A model is NAME:FILE[@option=value,…], for example onnxruntime:r50.onnx@threads=2 or eager:checkpoint.pth;
without NAME, the kind of the file picks one. docs/runtimes.md has all names and options."""


def models_argument(command: _Command) -> _Command:
    """``RUNTIME:FILE …``."""
    return click.argument("models", nargs=-1, required=True, metavar="RUNTIME:FILE...")(command)


def data_options(*, required: bool, images: str) -> Callable[[_Command], _Command]:
    """``--data`` and what may stand beside it.

    Args:
        required: Whether there have to be images.
        images: Help of ``--images``.
    """

    def wrap(command: _Command) -> _Command:
        for option in reversed((
            click.option("--data", type=click.Path(path_type=Path), metavar="DIR", required=required,
                         help="A folder, class folders, a list or an array file."),
            click.option("--images", "image_count", type=click.IntRange(min=0), default=0, show_default=True,
                         metavar="N", help=images),
            click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N",
                         help="Of the sample."),
            click.option("--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, metavar="N",
                         help="Fraction of the images that may be unusable; they are skipped and told."),
        )):  # fmt: skip
            command = option(command)
        return command

    return wrap


def report_options(command: _Command) -> _Command:
    """Files to write besides what is printed."""
    for option in reversed((
        click.option("--html", type=click.Path(path_type=Path), metavar="FILE",
                     help="A report for people: one file, no network."),
        click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="JUnit XML for a CI system."),
        click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="For a pull request."),
    )):  # fmt: skip
        command = option(command)
    return command


def fields_of(given: dict[str, Any]) -> dict[str, Any]:
    """What was said of the preprocessing."""
    from exporter.contracts import FIELDS

    return {name: given[name] for name in FIELDS}


@contextmanager
def moving(what: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that moves with what is called with the number done and the number of all."""
    if silent:
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from exporter.cli.console import stderr_console

    console = stderr_console()
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def telling(quiet: bool) -> Callable[[BadFile], None] | None:
    """One line on stderr for each image that cannot be used; ``None`` where nothing is to be said."""
    return None if quiet else lambda file: click.echo(f"skipped {file.path}: {file.reason}", err=True)
