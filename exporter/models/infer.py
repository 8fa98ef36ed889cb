"""The architecture of a residual network, read from nothing but the names and shapes of its tensors.

What shapes tell: depth, kind of block, widths, groups, classes, stem, input channels, where projections are.
What they cannot tell is decided by convention and reported as an assumption: strides (no tensor depends on them),
the max pool after the stem, and on which side option A puts its zero channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from exporter.models.blueprint import BlockKind, BlockPlan, Blueprint, Family, Shortcut, Stem
from exporter.models.fit import check_tensors
from exporter.models.naming import Renamed
from exporter.models.variants import IMAGENET_NAMES, blueprint_for, cifar_name
from runtimes.errors import ArchitectureError, CheckpointError

_BLOCK = re.compile(r"layer(\d{1,3})\.(\d{1,5})\.(.+)")
_CIFAR_STAGES = 3
_FACTORY_HINT = "for another network give its code: MODEL = package.module:factory (or timm:NAME) with --weights"
_SAMPLE = 4  # names that show what else a file holds


@dataclass(frozen=True)
class Inference:
    """What a checkpoint turned out to be.

    Attributes:
        blueprint: The network.
        assumptions: What the tensors cannot tell, one sentence each.
    """

    blueprint: Blueprint
    assumptions: tuple[str, ...]


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes under torchvision's names; messages use the names that the file's owner knows."""

    def __init__(self, renamed: Renamed) -> None:
        super().__init__({name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()})
        self._origin = renamed.origin

    def called(self, name: str) -> str:
        """The name in the file, or the same one where the file has none."""
        return self._origin.get(name, name)


def infer(renamed: Renamed, norm_eps: float | None = None) -> Inference:
    """Infer the blueprint of a state dict that has torchvision's names.

    Args:
        renamed: The state dict.
        norm_eps: BatchNorm's eps, where it is known not to be torch's 1e-5.

    Raises:
        CheckpointError: Not a ResNet, or one whose tensors contradict each other; names the tensors.
        ArchitectureError: A block that changes shape and has no projection.
    """
    shapes = _Shapes(renamed)
    _require_resnet(shapes)
    stem = _infer_stem(shapes)
    stages = _infer_stages(shapes, stem.channels)
    family: Family = "cifar" if len(stages) == 3 and not stem.pool else "imagenet"
    blueprint = Blueprint(
        name="resnet",
        family=family,
        in_channels=shapes["conv1.weight"][1],
        stem=stem,
        stages=stages,
        num_classes=_infer_classes(shapes, stages),
        conv_bias="conv1.bias" in shapes,
    )
    blueprint = replace(blueprint, name=_name(blueprint), norm_eps=norm_eps or blueprint.norm_eps)
    check_tensors(blueprint, renamed)
    return Inference(blueprint, _assumptions(blueprint))


def _require_resnet(shapes: _Shapes) -> None:
    blocks = [name for name in shapes if _BLOCK.fullmatch(name)]
    if "conv1.weight" in shapes and len(shapes["conv1.weight"]) == 4 and blocks:
        _require_plain(shapes)
        return
    sample = ", ".join(shapes.called(name) for name in list(shapes)[:_SAMPLE])
    missing = "conv1.weight" if "conv1.weight" not in shapes else "layer1.0.conv1.weight"
    raise CheckpointError(
        f"not the checkpoint of a ResNet: it has no {missing} (under any known name); its tensors begin {sample}; "
        f"{_FACTORY_HINT}"
    )


def _require_plain(shapes: _Shapes) -> None:
    """Name the relatives of the ResNet that load under the same names but compute something else."""
    for name, shape in shapes.items():
        if ".se." in name or ".se_module." in name:
            raise CheckpointError(
                f"{shapes.called(name)}: a squeeze-and-excitation ResNet; use timm:NAME with --weights"
            )
        if re.fullmatch(r"layer\d+\.\d+\.(shortcut|downsample)\.[12]\.weight", name) and len(shape) == 4:
            raise CheckpointError(
                f"{shapes.called(name)}: a ResNet-D shortcut (average pool before the projection); "
                "use timm:NAME with --weights"
            )
        if re.fullmatch(r"layer\d+\.\d+\.conv1\.bias", name) and name.replace("conv1.bias", "bn1.weight") not in shapes:
            raise CheckpointError(
                f"{shapes.called(name)} has no BatchNorm beside it: the BatchNorms of this checkpoint are folded "
                f"already, or it never had any; {_FACTORY_HINT}"
            )
        if name.endswith(".bn1.weight") and (match := _BLOCK.fullmatch(name)):
            _require_post_activation(shapes, name, f"layer{match[1]}.{match[2]}.conv1.weight")


def _require_post_activation(shapes: _Shapes, norm: str, conv: str) -> None:
    kernel = shapes.get(conv)
    if kernel and len(kernel) == 4 and shapes[norm] == (kernel[1],) != (kernel[0],):
        raise CheckpointError(
            f"{shapes.called(norm)} has the {kernel[1]} channels that {shapes.called(conv)} takes, not the {kernel[0]} "
            f"that it gives: a pre-activation ResNet (arXiv 1603.05027); {_FACTORY_HINT}"
        )


def _infer_stem(shapes: _Shapes) -> Stem:
    shape = shapes["conv1.weight"]
    channels, _, kernel, width = shape
    if kernel != width or kernel not in (3, 5, 7):
        raise CheckpointError(
            f"{shapes.called('conv1.weight')} is {list(shape)}: expected a square stem kernel of 3, 5 or 7 pixels; "
            f"{_FACTORY_HINT}"
        )
    small = kernel == 3
    return Stem(channels, kernel, stride=1 if small else 2, pool=not small)


def _infer_stages(shapes: _Shapes, channels: int) -> tuple[tuple[BlockPlan, ...], ...]:
    positions = sorted({(int(m[1]), int(m[2])) for name in shapes if (m := _BLOCK.fullmatch(name))})
    depths: dict[int, int] = {}
    for stage, position in positions:
        if position != depths.get(stage, 0):
            example = next(name for name in shapes if name.startswith(f"layer{stage}.{position}."))
            raise CheckpointError(
                f"the checkpoint has {shapes.called(example)}, but no block {depths.get(stage, 0)} in that stage: "
                "tensors are missing; save the whole model.state_dict()"
            )
        depths[stage] = position + 1
    has_projection = any(".downsample." in name for name in shapes)
    stages = []
    for stage in sorted(depths):
        blocks = []
        for position in range(depths[stage]):
            first_of_later_stage = position == 0 and stage > 1
            block = _infer_block(
                shapes, f"layer{stage}.{position}", channels, 2 if first_of_later_stage else 1, has_projection
            )
            blocks.append(block)
            channels = block.out_channels
        stages.append(tuple(blocks))
    return tuple(stages)


def _infer_block(shapes: _Shapes, name: str, in_channels: int, stride: int, has_projection: bool) -> BlockPlan:
    kernels = [_kernel(shapes, f"{name}.conv{number}.weight") for number in (1, 2)]
    kind: BlockKind = "bottleneck" if f"{name}.conv3.weight" in shapes else "basic"
    expected = [1, 3, 1] if kind == "bottleneck" else [3, 3]
    if kind == "bottleneck":
        kernels.append(_kernel(shapes, f"{name}.conv3.weight"))
    sides = [kernel[2] for kernel in kernels]
    if sides != expected or any(kernel[2] != kernel[3] for kernel in kernels):
        raise CheckpointError(
            f"block {name}: kernels of {sides} pixels; a {kind} block has {expected}; {_FACTORY_HINT}"
        )
    if kernels[0][1] not in (in_channels, in_channels // max(_groups(kernels[1], kernels[0][0]), 1)):
        raise CheckpointError(
            f"{shapes.called(f'{name}.conv1.weight')} takes {kernels[0][1]} channels, but what comes before it gives "
            f"{in_channels}; {_FACTORY_HINT}"
        )
    width = kernels[1][0] if kind == "bottleneck" else kernels[0][0]
    groups = _groups(kernels[1], kernels[0][0])
    return BlockPlan(
        name, kind, in_channels, width, kernels[-1][0], stride, groups,
        _infer_shortcut(shapes, name, (in_channels, kernels[-1][0]), stride, has_projection, kind),
    )  # fmt: skip


def _groups(kernel: tuple[int, ...], channels: int) -> int:
    return channels // kernel[1] if kernel[1] and channels % kernel[1] == 0 else 1


def _kernel(shapes: _Shapes, name: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{name} is missing: the block cannot be told without it; {_FACTORY_HINT}")
    if len(shape) != 4:
        raise CheckpointError(f"{shapes.called(name)} is {list(shape)}: expected a convolution kernel of 4 dimensions")
    return shape


def _infer_shortcut(
    shapes: _Shapes,
    name: str,
    channels: tuple[int, int],
    stride: int,
    has_projection: bool,
    kind: BlockKind,
) -> Shortcut:
    projection = shapes.get(f"{name}.downsample.0.weight")
    if projection is not None:
        if len(projection) != 4 or projection[2:] != (1, 1):
            raise CheckpointError(
                f"{shapes.called(f'{name}.downsample.0.weight')} is {list(projection)}: expected a 1x1 projection; "
                f"{_FACTORY_HINT}"
            )
        return "projection"
    if stride == 1 and channels[0] == channels[1]:
        return "identity"
    # Option A exists only where a network has no projection at all; a single missing one is a broken checkpoint.
    if has_projection or not _may_be_option_a(shapes) or kind == "bottleneck" or channels[1] < channels[0]:
        raise ArchitectureError(
            f"block {name}: {channels[0]} channels in, {channels[1]} out, stride {stride}, and the checkpoint has no "
            f"projection for it: {name}.downsample.0.weight is missing"
        )
    return "subsample"


def _may_be_option_a(shapes: _Shapes) -> bool:
    """Parameter-free shortcuts are the CIFAR family's; elsewhere a missing projection is a broken checkpoint."""
    stem = shapes.get("conv1.weight") or ()
    stages = {match[1] for name in shapes if (match := _BLOCK.fullmatch(name))}
    return stem[2:] == (3, 3) and len(stages) <= _CIFAR_STAGES


def _infer_classes(shapes: _Shapes, stages: tuple[tuple[BlockPlan, ...], ...]) -> int:
    shape = shapes.get("fc.weight")
    features = stages[-1][-1].out_channels
    if shape is None or len(shape) != 2:
        have = "missing" if shape is None else f"{list(shape)}"
        raise CheckpointError(
            f"{shapes.called('fc.weight')} (the classifier) is {have}: expected [classes, {features}]; "
            "a backbone without its head has no logits to compare"
        )
    if shape[1] != features:
        raise CheckpointError(
            f"{shapes.called('fc.weight')} takes {shape[1]} features, but the last block gives {features}"
        )
    return shape[0]


def _name(found: Blueprint) -> str:
    """The variant's name where every block agrees with one, else a name made from the shape."""
    for name in IMAGENET_NAMES:
        same = blueprint_for(name, num_classes=found.num_classes, in_channels=found.in_channels)
        if same.stages == found.stages and not found.conv_bias:
            return name if same.stem == found.stem else f"{name}_{found.stem.kernel}x{found.stem.kernel}stem"
    if found.family == "cifar" and found.shortcut_option in {"A", "B", "C"} and (found.depth - 2) % 6 == 0:
        name = cifar_name(found.depth, found.shortcut_option)
        same = blueprint_for(
            name if "cifar" in name else f"cifar_{name}", num_classes=found.num_classes, in_channels=found.in_channels
        )
        if same.stages == found.stages and same.stem == found.stem:
            return name
    return f"resnet{found.depth}_custom"


def _assumptions(blueprint: Blueprint) -> tuple[str, ...]:
    stem = blueprint.stem
    told = [
        f"a {stem.kernel}x{stem.kernel} stem has stride {stem.stride} and {'a' if stem.pool else 'no'} max pool",
        "each stage after the first halves the image",
        f"BatchNorm has eps {blueprint.norm_eps:g}, activations are ReLU, convolutions are not dilated",
    ]
    if any(block.kind == "bottleneck" for block in blueprint.blocks()):
        told.append("bottlenecks stride in their 3x3 convolution")
    if blueprint.shortcut_option == "A":
        told.append("option A puts half of its zero channels on each side")
    return tuple(told)
