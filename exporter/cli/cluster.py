"""``--ray``: the options of the commands that can run on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def ray_options(command: _Command) -> _Command:
    """``--ray`` and what may stand beside it."""
    for option in reversed((
        click.option("--ray", metavar="ADDRESS|local",
                     help="Run on a Ray cluster: HOST:PORT of its head, auto, or local for processes of this machine."),
        click.option("--ray-workers", type=click.IntRange(min=1), metavar="N",
                     help="Pieces of the list that are worked on at a time; default: all processors."),
        click.option("--ray-ship", is_flag=True,
                     help="Send the images to the workers, which cannot read them under the same path."),
    )):  # fmt: skip
        command = option(command)
    return command


def check_ray(given: dict[str, Any], name: str, default: object) -> None:
    """Refuse options that mean nothing together.

    Args:
        given: All options.
        name: One that ``--ray`` leaves no use for.
        default: Its value where it was not given.

    Raises:
        click.UsageError: ``--ray`` without a use for the option, or options of ``--ray`` without it.
    """
    if given["ray"] is None:
        if given["ray_workers"] is not None or given["ray_ship"]:
            raise click.UsageError("--ray-workers and --ray-ship are of --ray: give --ray local, or an address")
    elif given[name] != default:
        flag = f"--{name.removesuffix('s') if name == 'providers' else name}"
        raise click.UsageError(
            f"{flag} is of one process: the workers of --ray decode their own images and run them on CPUs; "
            f"leave out {flag}"
        )
