"""A residual network as a table of blocks, and the checks that the table must pass.

A residual block computes ``y = relu(F(x) + S(x))`` (He et al. 2015, arXiv 1512.03385, eq. 1 and 2). The sum exists
only where ``F(x)`` and ``S(x)`` have one shape, so for every block with ``C_in != C_out`` or ``stride != 1`` the
shortcut ``S`` must change the shape too. This module is where that is checked: before any tensor exists.

Nothing here imports torch: a blueprint can be read, printed and compared on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from runtimes.errors import ArchitectureError, first_line

BlockKind = Literal["basic", "bottleneck"]
#: ``identity``: S(x) = x.  ``projection``: a strided 1x1 convolution and BatchNorm (options B and C of the paper).
#: ``subsample``: every stride-th pixel, and zero channels where more are needed (option A, no parameters).
Shortcut = Literal["identity", "projection", "subsample"]
Family = Literal["imagenet", "cifar"]


@dataclass(frozen=True)
class BlockPlan:
    """One residual block.

    Attributes:
        name: Module path of the block, for example ``layer2.0``.
        kind: ``basic``: two 3x3 convolutions; ``bottleneck``: 1x1, 3x3, 1x1.
        in_channels: Channels of ``x``.
        width: Channels of the 3x3 convolution (of the first one in a basic block).
        out_channels: Channels of ``y``.
        stride: Spatial stride of the block, in pixels of ``x``.
        groups: Groups of the 3x3 convolution (ResNeXt's cardinality).
        shortcut: What ``S`` is.
    """

    name: str
    kind: BlockKind
    in_channels: int
    width: int
    out_channels: int
    stride: int
    groups: int = 1
    shortcut: Shortcut = "identity"

    def __post_init__(self) -> None:
        check_block(self)

    @property
    def changes_shape(self) -> bool:
        """Whether ``F(x)`` has another shape than ``x``."""
        return self.stride != 1 or self.in_channels != self.out_channels


def check_block(plan: BlockPlan) -> None:
    """Refuse a block whose two branches cannot be added.

    Raises:
        ArchitectureError: Names the block, channels in, channels out, stride, and what would mend it.
    """
    where = f"block {plan.name}: {plan.in_channels} channels in, {plan.out_channels} out, stride {plan.stride}"
    numbers = (plan.in_channels, plan.width, plan.out_channels, plan.stride, plan.groups)
    if not all(_is_count(number) for number in numbers):
        raise ArchitectureError(
            f"{where}, width {plan.width}, groups {plan.groups}: each must be a whole number of at least 1"
        )
    for value, allowed in ((plan.kind, get_args(BlockKind)), (plan.shortcut, get_args(Shortcut))):
        if value not in allowed:
            raise ArchitectureError(f"{where}: {value!r} is none of {', '.join(allowed)}")
    if plan.shortcut == "identity" and plan.changes_shape:
        raise ArchitectureError(
            f"{where}: an identity shortcut has another shape than the residual branch and cannot be added to it; "
            f"this block needs shortcut='projection' (a {plan.stride}-strided 1x1 convolution, options B and C) "
            f"or 'subsample' (option A)"
        )
    if plan.shortcut == "subsample" and plan.out_channels < plan.in_channels:
        raise ArchitectureError(
            f"{where}: option A adds zero channels and cannot take any away; use shortcut='projection'"
        )
    if plan.kind == "basic" and plan.width != plan.out_channels:
        raise ArchitectureError(
            f"{where}: a basic block's second convolution keeps its width, but width is {plan.width}"
        )
    if plan.width % plan.groups:
        raise ArchitectureError(f"{where}: width {plan.width} is not divisible by {plan.groups} groups")
    if plan.kind == "basic" and plan.in_channels % plan.groups:
        raise ArchitectureError(
            f"{where}: both 3x3 convolutions of a basic block are grouped, but {plan.in_channels} channels are not "
            f"divisible by {plan.groups} groups"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Stem:
    """The layers before the first block: convolution, BatchNorm, ReLU and, with ``pool``, a 3x3/2 max pool.

    Attributes:
        channels: Channels that it gives.
        kernel: Side of the convolution kernel, in pixels; the padding is ``kernel // 2``.
        stride: Stride of the convolution.
        pool: Whether the max pool follows.
    """

    channels: int
    kernel: int
    stride: int
    pool: bool

    def __post_init__(self) -> None:
        if not all(_is_count(number) for number in (self.channels, self.kernel, self.stride)) or self.kernel % 2 == 0:
            raise ArchitectureError(
                f"stem: {self.channels} channels, kernel {self.kernel}, stride {self.stride}: each must be a whole "
                "number of at least 1, and the kernel odd"
            )


@dataclass(frozen=True)
class Blueprint:
    """A whole residual network.

    Attributes:
        name: The name people know it by (``resnet50``), or one made from its shape.
        family: ``imagenet`` (four stages, 224 px) or ``cifar`` (section 4.2 of the paper, three stages, 32 px).
        in_channels: Channels of the input image.
        stem: Layers before the first block.
        stages: Blocks, stage by stage; ``stages[0]`` is ``layer1``.
        num_classes: Width of the classifier.
        conv_bias: Whether the convolutions carry a bias beside their BatchNorm (rare; taken from checkpoints).
        norm_eps: What BatchNorm adds to the variance; no tensor tells it.
    """

    name: str
    family: Family
    in_channels: int
    stem: Stem
    stages: tuple[tuple[BlockPlan, ...], ...]
    num_classes: int
    conv_bias: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_names()
        channels = self.stem.channels
        for block in self.blocks():
            if block.in_channels != channels:
                raise ArchitectureError(
                    f"block {block.name} takes {block.in_channels} channels, but what comes before it gives {channels}"
                )
            channels = block.out_channels

    def _check_counts(self) -> None:
        for what, value in (("in_channels", self.in_channels), ("num_classes", self.num_classes)):
            if not _is_count(value):
                raise ArchitectureError(f"{self.name}: {what} must be a whole number of at least 1, got {value}")
        if not self.stages or not all(self.stages):
            raise ArchitectureError(f"{self.name}: every stage needs at least one block")

    def _check_names(self) -> None:
        for index, stage in enumerate(self.stages, start=1):
            for position, block in enumerate(stage):
                if block.name != f"layer{index}.{position}":
                    raise ArchitectureError(
                        f"block {block.name} stands where layer{index}.{position} belongs: a block is named after its "
                        "place, because its tensors are"
                    )

    def blocks(self) -> Iterator[BlockPlan]:
        """Every block, from the input to the output."""
        for stage in self.stages:
            yield from stage

    @property
    def features(self) -> int:
        """Channels that reach the classifier."""
        return self.stages[-1][-1].out_channels

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, counted as the paper does: projections are not counted."""
        return 2 + sum(2 if block.kind == "basic" else 3 for block in self.blocks())

    @property
    def shortcut_option(self) -> str:
        """``A``, ``B`` or ``C`` of the paper's section 4.1, ``none`` without a shape change, else ``mixed``."""
        changing = {block.shortcut for block in self.blocks() if block.changes_shape}
        keeping = {block.shortcut for block in self.blocks() if not block.changes_shape}
        if changing == {"subsample"} and keeping <= {"identity"}:
            return "A"
        if changing == {"projection"} and keeping == {"projection"}:
            return "C"
        if changing == {"projection"} and keeping <= {"identity"}:
            return "B"
        return "none" if not changing and keeping <= {"identity"} else "mixed"

    @property
    def input_size(self) -> int:
        """Side, in pixels, of the square image that the family is trained on."""
        return 224 if self.family == "imagenet" and self.stem.pool else 32

    @property
    def total_stride(self) -> int:
        """Input pixels per pixel of the last feature map."""
        stride = self.stem.stride * (2 if self.stem.pool else 1)
        for block in self.blocks():
            stride *= block.stride
        return stride

    def to_json(self) -> dict[str, Any]:
        """Plain values, for metadata and ``--json``."""
        return {
            "name": self.name,
            "family": self.family,
            "depth": self.depth,
            "shortcut_option": self.shortcut_option,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "conv_bias": self.conv_bias,
            "norm_eps": self.norm_eps,
            "stem": asdict(self.stem),
            "stages": [[asdict(block) for block in stage] for stage in self.stages],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Blueprint:
        """The inverse of :meth:`to_json`; every check runs again.

        Raises:
            ArchitectureError: A field is missing, unknown or of another type, or a check fails.
        """
        try:
            return cls(
                name=value["name"],
                family=value["family"],
                in_channels=value["in_channels"],
                stem=Stem(**value["stem"]),
                stages=tuple(tuple(BlockPlan(**block) for block in stage) for stage in value["stages"]),
                num_classes=value["num_classes"],
                conv_bias=value["conv_bias"],
                norm_eps=value["norm_eps"],
            )
        except KeyError as error:
            raise ArchitectureError(f"not a blueprint: it has no {error}; expected what to_json gives") from error
        except TypeError as error:
            raise ArchitectureError(f"not a blueprint: {first_line(error)}; expected what to_json gives") from error


def plan_stage(
    index: int,
    *,
    kind: BlockKind,
    blocks: int,
    in_channels: int,
    width: int,
    out_channels: int,
    stride: int,
    groups: int = 1,
    option: Literal["A", "B", "C"] = "B",
) -> tuple[BlockPlan, ...]:
    """Plan one stage: the first block changes the shape, the others keep it.

    Args:
        index: One-based number of the stage, as in ``layer1``.
        kind: Kind of every block.
        blocks: How many there are.
        in_channels: Channels that the stage takes.
        width: Width of each block's 3x3 convolution.
        out_channels: Channels that the stage gives.
        stride: Stride of the first block.
        groups: Groups of the 3x3 convolutions.
        option: Shortcut option of the paper's section 4.1.
    """
    plans = []
    for position in range(blocks):
        first = position == 0
        channels, step = (in_channels, stride) if first else (out_channels, 1)
        changes = step != 1 or channels != out_channels
        shortcut: Shortcut = "identity"
        if option == "C" or (changes and option == "B"):
            shortcut = "projection"
        elif changes:
            shortcut = "subsample"
        plans.append(BlockPlan(f"layer{index}.{position}", kind, channels, width, out_channels, step, groups, shortcut))
    return tuple(plans)
