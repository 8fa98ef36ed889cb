"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from exporter.models.source import SourceOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])


_LARGEST_SIDE = 8192  # one image of that side already takes gigabytes of activations


def size(text: str) -> tuple[int, int]:
    """``224`` or ``480x640`` (height x width), in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r}: expected pixels as 224 or 480x640 (height x width)")
    height, width = int(parts[0]), int(parts[-1])
    if max(height, width) > _LARGEST_SIDE:
        raise click.BadParameter(f"{text!r}: expected at most {_LARGEST_SIDE} pixels a side")
    return (height, width)


def numbers(text: str) -> tuple[float, ...]:
    """One number, or one per channel, with commas: ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers with commas, as in 0.485,0.456,0.406") from None


def _apply(*decorators: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def wrap(command: _Command) -> _Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return wrap


#: MODEL, and what may stand beside it.
model_options = _apply(
    click.argument("model"),
    click.option("--weights", metavar="FILE|random|DEFAULT", help="Weights for a variant, timm: or factory MODEL."),
    click.option(
        "--num-classes", type=click.IntRange(min=1), metavar="N", help="Classes, where not the variant's own."
    ),
    click.option("--in-channels", type=click.IntRange(min=1), metavar="N", help="Image channels, where not 3."),
    click.option("--input-size", type=size, metavar="HxW", help="Image size; default: the family's (224 or 32)."),
    click.option(
        "--bn-eps",
        type=click.FloatRange(min=0, min_open=True),
        metavar="N",
        help="BatchNorm's eps, where not 1e-5: no checkpoint tells it.",
    ),
    click.option(
        "--checkpoint-key", metavar="KEY", help="Place of the weights in a file that holds several (ema.module)."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        metavar="N",
        default=0,
        show_default=True,
        help="For random weights and sampled images.",
    ),
)

#: The preprocessing contract: a preset, and every field of it.
preprocessing_options = _apply(
    click.option("--preset", type=click.Choice(["imagenet", "cifar"]), help="Preprocessing to start from."),
    click.option("--resize", type=click.IntRange(min=1), metavar="PX", help="Shorter side before the centre crop."),
    click.option(
        "--interpolation", type=click.Choice(["bilinear", "bicubic", "nearest"]), help="Filter of the resize."
    ),
    click.option("--color", type=click.Choice(["RGB", "BGR", "L"]), help="Channel order."),
    click.option("--scale", type=float, metavar="N", help="Factor on 8-bit values; default 1/255."),
    click.option("--mean", type=numbers, metavar="N,N,N", help="Taken off each channel, after the scale."),
    click.option("--std", type=numbers, metavar="N,N,N", help="Divides each channel."),
)

#: How much is said.
output_options = _apply(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("--debug", is_flag=True, help="Print tracebacks."),
)

verbose = click.option("-v", "--verbose", is_flag=True, help="Print every fold, comparison and note.")

output_path = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where the file goes."
)


def source_options(given: dict[str, Any], *, shapes_only: bool = False) -> SourceOptions:
    """What :data:`model_options` said beside ``MODEL``."""
    from exporter.models.source import SourceOptions

    return SourceOptions(
        weights=given["weights"],
        num_classes=given["num_classes"],
        in_channels=given["in_channels"],
        input_size=given["input_size"],
        norm_eps=given["bn_eps"],
        checkpoint_key=given["checkpoint_key"],
        seed=given["seed"],
        shapes_only=shapes_only,
    )
