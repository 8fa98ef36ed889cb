"""What a person first wants to see of a network: data flow, blocks and their checks, cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from exporter.models.blueprint import BlockPlan, Blueprint

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _Conv:
    """One convolution of the longest path or of a projection, with its BatchNorm."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int = 1


@dataclass(frozen=True)
class BlockRow:
    """One residual block.

    Attributes:
        name: Module path.
        kind: ``basic`` or ``bottleneck``.
        in_channels: Of its input.
        out_channels: Of its output.
        width: Channels of its 3x3 convolution.
        groups: Of its 3x3 convolution.
        stride: In pixels of its input.
        shortcut: ``identity``, ``projection`` or ``subsample``.
        check: Why the two branches can be added.
        output: ``[C, H, W]``.
        parameters: Weights of its layers.
        macs: Multiply-accumulates for one image.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    width: int
    groups: int
    stride: int
    shortcut: str
    check: str
    output: tuple[int, int, int]
    parameters: int
    macs: int


@dataclass(frozen=True)
class StageRow:
    """Stem, stage of blocks, pool or classifier.

    Attributes:
        name: Module path, or ``stem``.
        what: Its layers in a few words.
        output: ``[C, H, W]``, or ``[C]`` after the pool.
        stride: Input pixels of the whole network per pixel of its output; 0 after the pool.
        receptive_field: Side, in input pixels, of the square that one of its outputs sees; 0 after the pool (all).
        parameters: Weights of its layers.
        macs: Multiply-accumulates for one image.
        blocks: Its residual blocks.
    """

    name: str
    what: str
    output: tuple[int, ...]
    stride: int
    receptive_field: int
    parameters: int
    macs: int
    blocks: tuple[BlockRow, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A whole network.

    Attributes:
        name: Of the network.
        input: ``[C, H, W]``.
        stages: In data-flow order.
        parameters: Weights and biases, with BatchNorm's; running statistics are not parameters.
        macs: Multiply-accumulates of convolutions and classifier for one image.
        receptive_field: Of the last feature map, in input pixels; ``None`` where it is not known.
        classes: Width of the output.
    """

    name: str
    input: tuple[int, int, int]
    stages: tuple[StageRow, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    classes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)


class _Walk:
    """Shape, stride and receptive field along the longest path (Araujo et al. 2019, distill.pub/2019/computing-receptive-fields, eq. 2)."""  # noqa: E501

    def __init__(self, size: tuple[int, int], bias: bool) -> None:
        self.size = size
        self.bias = bias
        self.stride = 1
        self.field = 1

    def slide(self, kernel: int, stride: int) -> None:
        self.field += (kernel - 1) * self.stride
        self.stride *= stride
        padding = kernel // 2
        self.size = (
            (self.size[0] + 2 * padding - kernel) // stride + 1,
            (self.size[1] + 2 * padding - kernel) // stride + 1,
        )

    def cost(self, conv: _Conv) -> tuple[int, int]:
        """Parameters and MACs of a convolution whose output has the present size."""
        weights = conv.out_channels * conv.in_channels // conv.groups * conv.kernel**2
        extra = conv.out_channels * (3 if self.bias else 2)  # BatchNorm's scale and shift, and a bias
        return weights + extra, weights * self.size[0] * self.size[1]


def summarise(blueprint: Blueprint, size: tuple[int, int]) -> Summary:
    """The summary of a network that is built here, computed from its blueprint alone.

    Args:
        blueprint: The network.
        size: Height and width of the input, in pixels.
    """
    walk = _Walk(size, blueprint.conv_bias)
    stages = [_stem(blueprint, walk)]
    for index, plans in enumerate(blueprint.stages, start=1):
        blocks = tuple(_block(plan, walk) for plan in plans)
        stages.append(
            StageRow(
                f"layer{index}",
                f"{len(blocks)} {plans[0].kind} block{'s' * (len(blocks) > 1)}",
                (plans[-1].out_channels, *walk.size),
                walk.stride,
                walk.field,
                sum(block.parameters for block in blocks),
                sum(block.macs for block in blocks),
                blocks,
            )
        )
    field = walk.field
    features, classes = blueprint.features, blueprint.num_classes
    stages.append(StageRow("avgpool", "global average pool", (features,), 0, 0, 0, 0))
    weights = features * classes
    stages.append(StageRow("fc", f"linear, {classes} logits", (classes,), 0, 0, weights + classes, weights))
    return Summary(
        blueprint.name,
        (blueprint.in_channels, *size),
        tuple(stages),
        sum(stage.parameters for stage in stages),
        sum(stage.macs for stage in stages),
        field,
        classes,
    )


def _stem(blueprint: Blueprint, walk: _Walk) -> StageRow:
    stem = blueprint.stem
    conv = _Conv(blueprint.in_channels, stem.channels, stem.kernel, stem.stride)
    walk.slide(stem.kernel, stem.stride)
    parameters, macs = walk.cost(conv)
    what = f"{stem.kernel}x{stem.kernel} convolution, stride {stem.stride}"
    if stem.pool:
        walk.slide(3, 2)
        what += ", 3x3 max pool, stride 2"
    return StageRow("stem", what, (stem.channels, *walk.size), walk.stride, walk.field, parameters, macs)


def _block(plan: BlockPlan, walk: _Walk) -> BlockRow:
    parameters = macs = 0
    for conv in _convolutions(plan):
        walk.slide(conv.kernel, conv.stride)
        more_parameters, more_macs = walk.cost(conv)
        parameters, macs = parameters + more_parameters, macs + more_macs
    if plan.shortcut == "projection":
        more_parameters, more_macs = walk.cost(_Conv(plan.in_channels, plan.out_channels, 1, plan.stride))
        parameters, macs = parameters + more_parameters, macs + more_macs
    return BlockRow(
        plan.name, plan.kind, plan.in_channels, plan.out_channels, plan.width, plan.groups, plan.stride,
        plan.shortcut, describe_check(plan), (plan.out_channels, *walk.size), parameters, macs,
    )  # fmt: skip


def _convolutions(plan: BlockPlan) -> Iterator[_Conv]:
    if plan.kind == "basic":
        yield _Conv(plan.in_channels, plan.width, 3, plan.stride, plan.groups)
        yield _Conv(plan.width, plan.out_channels, 3, 1, plan.groups)
    else:
        yield _Conv(plan.in_channels, plan.width, 1, 1)
        yield _Conv(plan.width, plan.width, 3, plan.stride, plan.groups)
        yield _Conv(plan.width, plan.out_channels, 1, 1)


def describe_check(plan: BlockPlan) -> str:
    """Why a block's branches can be added: every block that exists has passed ``check_block``."""
    change = f"{plan.in_channels}→{plan.out_channels}" + (f", stride {plan.stride}" if plan.stride > 1 else "")
    if plan.shortcut == "identity":
        return f"same shape ({plan.in_channels}), identity fits"
    if plan.shortcut == "projection":
        return f"{change}: projected by a 1x1 convolution"
    return f"{change}: subsampled and zero-padded (option A)"


def summarise_module(module: nn.Module, name: str, shape: tuple[int, int, int]) -> Summary:
    """The summary of any module, measured by running one zero image through it.

    Args:
        module: In evaluation mode, on the CPU or on ``meta``.
        name: For the report.
        shape: ``[C, H, W]`` of the input.

    Raises:
        GraphError: The module cannot take this input, or does not return ``[N, classes]``.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from runtimes.errors import GraphError, first_line

    outputs: dict[str, tuple[int, ...]] = {}

    def record(child: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[child] = tuple(output.shape[1:])

        return hook

    handles = [layer.register_forward_hook(record(child)) for child, layer in module.named_children()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = module(torch.zeros(1, *shape, device=device))
    except Exception as error:
        raise GraphError(f"{name} cannot take an image of {list(shape)}: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise GraphError(f"{name} does not return logits [N, classes]: wrap it so that it returns only them")
    flops = {path: sum(by_operator.values()) for path, by_operator in counter.get_flop_counts().items()}
    root = type(module).__name__
    stages = tuple(
        StageRow(
            child, type(layer).__name__, outputs.get(child, ()), 0, 0,
            sum(parameter.numel() for parameter in layer.parameters()), flops.get(f"{root}.{child}", 0) // 2,
        )
        for child, layer in module.named_children()
    )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Summary(name, shape, stages, parameters, counter.get_total_flops() // 2, None, int(logits.shape[1]))
