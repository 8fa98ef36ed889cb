"""The networks that have names: the ten of torchvision, and the CIFAR family of He et al. 2015, section 4.2."""

from __future__ import annotations

import difflib
import re
from typing import Literal, NamedTuple

from exporter.models.blueprint import BlockKind, BlockPlan, Blueprint, Stem, plan_stage
from runtimes.errors import ArchitectureError, ModelSourceError

Option = Literal["A", "B", "C"]


class _ImageNetRow(NamedTuple):
    kind: BlockKind
    blocks: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64


# He et al. 2015, table 1; Xie et al. 2016 (ResNeXt, 1611.05431), table 1: cardinality x width of a group;
# Zagoruyko & Komodakis 2016 (Wide ResNet, 1605.07146): the 3x3 convolution twice as wide.
_IMAGENET: dict[str, _ImageNetRow] = {
    "resnet18": _ImageNetRow("basic", (2, 2, 2, 2)),
    "resnet34": _ImageNetRow("basic", (3, 4, 6, 3)),
    "resnet50": _ImageNetRow("bottleneck", (3, 4, 6, 3)),
    "resnet101": _ImageNetRow("bottleneck", (3, 4, 23, 3)),
    "resnet152": _ImageNetRow("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": _ImageNetRow("bottleneck", (3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x8d": _ImageNetRow("bottleneck", (3, 4, 23, 3), groups=32, base_width=8),
    "resnext101_64x4d": _ImageNetRow("bottleneck", (3, 4, 23, 3), groups=64, base_width=4),
    "wide_resnet50_2": _ImageNetRow("bottleneck", (3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": _ImageNetRow("bottleneck", (3, 4, 23, 3), base_width=128),
}
IMAGENET_NAMES = tuple(_IMAGENET)
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
#: Every name that ``--help`` and error messages offer.
NAMES = (*IMAGENET_NAMES, *(f"resnet{depth}" for depth in CIFAR_DEPTHS))

# "resnet50" is ImageNet's although 50 = 6*8+2; the prefix reaches every depth of the CIFAR family.
_CIFAR_NAME = re.compile(r"(?P<prefix>cifar_)?resnet(?P<depth>\d{1,5})(?:_(?P<option>[abc]))?")
_BOTTLENECK_EXPANSION = 4


def imagenet_blueprint(name: str, *, num_classes: int = 1000, in_channels: int = 3) -> Blueprint:
    """The blueprint of one of torchvision's ten ResNets.

    Args:
        name: One of :data:`IMAGENET_NAMES`.
        num_classes: Width of the classifier.
        in_channels: Channels of the input image.
    """
    row = _IMAGENET[name]
    stages: list[tuple[BlockPlan, ...]] = []
    channels = 64
    for index, count in enumerate(row.blocks, start=1):
        planes = 64 * 2 ** (index - 1)
        basic = row.kind == "basic"
        width = planes if basic else planes * row.base_width // 64 * row.groups
        out_channels = planes if basic else planes * _BOTTLENECK_EXPANSION
        stages.append(
            plan_stage(
                index,
                kind=row.kind,
                blocks=count,
                in_channels=channels,
                width=width,
                out_channels=out_channels,
                stride=1 if index == 1 else 2,
                groups=row.groups,
            )
        )
        channels = out_channels
    return Blueprint(name, "imagenet", in_channels, Stem(64, kernel=7, stride=2, pool=True), tuple(stages), num_classes)


def cifar_blueprint(depth: int, *, option: Option = "A", num_classes: int = 10, in_channels: int = 3) -> Blueprint:
    """The CIFAR network of He et al. 2015, section 4.2: 6n+2 layers in three stages of 16, 32 and 64 channels.

    Args:
        depth: 6n+2 with n >= 1.
        option: Shortcuts: ``A`` without parameters (the paper's choice here), ``B`` or ``C``.
        num_classes: Width of the classifier.
        in_channels: Channels of the input image.

    Raises:
        ArchitectureError: The depth is not of the form 6n+2.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ArchitectureError(f"a CIFAR ResNet has 6n+2 layers with n >= 1, got {depth}; the nearest is {near}")
    stages: list[tuple[BlockPlan, ...]] = []
    channels = 16
    for index, width in enumerate((16, 32, 64), start=1):
        stages.append(
            plan_stage(
                index,
                kind="basic",
                blocks=n,
                in_channels=channels,
                width=width,
                out_channels=width,
                stride=1 if index == 1 else 2,
                option=option,
            )
        )
        channels = width
    name = cifar_name(depth, option)
    return Blueprint(name, "cifar", in_channels, Stem(16, kernel=3, stride=1, pool=False), tuple(stages), num_classes)


def cifar_name(depth: int, option: str) -> str:
    """The name that :func:`blueprint_for` takes back: ``resnet20``, ``cifar_resnet50_b``."""
    prefix = "" if depth in CIFAR_DEPTHS else "cifar_"
    return f"{prefix}resnet{depth}" + ("" if option == "A" else f"_{option.lower()}")


def is_variant(name: str) -> bool:
    """Whether :func:`blueprint_for` knows the name."""
    return name in _IMAGENET or _cifar_match(name) is not None


def _cifar_match(name: str) -> re.Match[str] | None:
    match = _CIFAR_NAME.fullmatch(name)
    if match and (match["prefix"] or int(match["depth"]) in CIFAR_DEPTHS):
        return match
    return None


def blueprint_for(name: str, *, num_classes: int | None = None, in_channels: int = 3) -> Blueprint:
    """The blueprint of a named variant.

    Args:
        name: ``resnet18`` … ``wide_resnet101_2``; ``resnet20`` … ``resnet1202``, with ``_b`` or ``_c`` for the
            other shortcut options; ``cifar_resnetN`` for any N = 6n+2.
        num_classes: Width of the classifier; ``None``: 1000 for ImageNet's, 10 for CIFAR's.
        in_channels: Channels of the input image.

    Raises:
        ModelSourceError: No such variant; the message has the nearest names.
    """
    if name in _IMAGENET:
        classes = 1000 if num_classes is None else num_classes
        return imagenet_blueprint(name, num_classes=classes, in_channels=in_channels)
    match = _cifar_match(name)
    if match is None:
        begun = [known for known in NAMES if name and known.startswith(name.lower())]
        near = (begun + difflib.get_close_matches(name.lower(), NAMES, n=3, cutoff=0.5))[:3]
        hint = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(NAMES)}"
        raise ModelSourceError(f"unknown model {name!r}: {hint}")
    options: dict[str | None, Option] = {None: "A", "a": "A", "b": "B", "c": "C"}
    classes = 10 if num_classes is None else num_classes
    return cifar_blueprint(
        int(match["depth"]), option=options[match["option"]], num_classes=classes, in_channels=in_channels
    )
