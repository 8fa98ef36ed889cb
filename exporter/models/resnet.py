"""Residual networks as modules: blocks, then the network, then ``build``.

From He et al. 2015 (https://arxiv.org/abs/1512.03385). Module names and the order of operations are torchvision's,
so that its state dicts load unchanged and the outputs are equal bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from exporter.models.blueprint import BlockPlan, Blueprint


def _conv3x3(plan: BlockPlan, in_channels: int, stride: int, groups: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(in_channels, plan.width, 3, stride, padding=1, groups=groups, bias=bias)


class SubsampleShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, and zero channels on both sides up to the wanted number.

    No parameters. ``[N, C_in, H, W]`` -> ``[N, C_out, ceil(H/stride), ceil(W/stride)]``. The paper does not say on
    which side the zero channels stand; half before and half after is what the public CIFAR checkpoints use.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad; see the class."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self.before or self.after:
            x = F.pad(x, (0, 0, 0, 0, self.before, self.after))
        return x

    def extra_repr(self) -> str:
        """What ``print`` shows inside the parentheses."""
        return f"stride={self.stride}, zero channels={self.before}+{self.after}"


def _shortcut(plan: BlockPlan, bias: bool) -> nn.Module | None:
    if plan.shortcut == "identity":
        return None
    if plan.shortcut == "subsample":
        return SubsampleShortcut(plan.in_channels, plan.out_channels, plan.stride)
    return nn.Sequential(
        nn.Conv2d(plan.in_channels, plan.out_channels, 1, plan.stride, bias=bias),
        nn.BatchNorm2d(plan.out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left). The first convolution carries the stride."""

    def __init__(self, plan: BlockPlan, conv_bias: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv3x3(plan, plan.in_channels, plan.stride, plan.groups, conv_bias)
        self.bn1 = nn.BatchNorm2d(plan.width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(plan, plan.width, 1, plan.groups, conv_bias)
        self.bn2 = nn.BatchNorm2d(plan.out_channels)
        self.downsample = _shortcut(plan, conv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` -> ``[N, C_out, H/stride, W/stride]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (figure 5, right).

    The stride is on the 3x3 convolution, not on the first 1x1 as in the paper: a strided 1x1 convolution throws
    three of four pixels away unseen. This is "v1.5" (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section
    5.1; about 0.5 points of ImageNet top-1), and what torchvision's weights are trained for.
    """

    def __init__(self, plan: BlockPlan, conv_bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(plan.in_channels, plan.width, 1, bias=conv_bias)
        self.bn1 = nn.BatchNorm2d(plan.width)
        self.conv2 = _conv3x3(plan, plan.width, plan.stride, plan.groups, conv_bias)
        self.bn2 = nn.BatchNorm2d(plan.width)
        self.conv3 = nn.Conv2d(plan.width, plan.out_channels, 1, bias=conv_bias)
        self.bn3 = nn.BatchNorm2d(plan.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(plan, conv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` -> ``[N, C_out, H/stride, W/stride]``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """The network of a blueprint: stem, stages ``layer1`` …, global average pool, classifier ``fc``."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        stem, bias = blueprint.stem, blueprint.conv_bias
        self.blueprint = blueprint
        self.conv1 = nn.Conv2d(
            blueprint.in_channels,
            stem.channels,
            stem.kernel,
            stem.stride,
            padding=stem.kernel // 2,
            bias=bias,
        )
        self.bn1 = nn.BatchNorm2d(stem.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem.pool else None
        self.stage_names = [f"layer{index}" for index, _ in enumerate(blueprint.stages, start=1)]
        for name, stage in zip(self.stage_names, blueprint.stages, strict=True):
            self.add_module(name, nn.Sequential(*(_BLOCKS[plan.kind](plan, bias) for plan in stage)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(blueprint.features, blueprint.num_classes)
        self._initialise()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = blueprint.norm_eps

    def _initialise(self) -> None:
        # He et al. 2015, "Delving Deep into Rectifiers" (https://arxiv.org/abs/1502.01852), eq. 14.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` -> logits ``[N, classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)  # type: ignore[no-any-return]


def build(blueprint: Blueprint) -> ResNet:
    """The network of a blueprint, in evaluation mode, with He initialisation (torch's global generator)."""
    return ResNet(blueprint).eval()


def build_empty(blueprint: Blueprint) -> ResNet:
    """The network without storage (device ``meta``): for counting, and for ``load_state_dict(assign=True)``."""
    with torch.device("meta"):
        return ResNet(blueprint).eval()


def randomise(model: ResNet, seed: int = 0) -> ResNet:
    """Give a network seeded random weights that behave like trained ones; in place, returns it.

    BatchNorm statistics are drawn away from 0 and 1, so that folding has something to do, and the last BatchNorm
    of a residual branch gets a scale that shrinks with the number of blocks: with plain He initialisation the
    signal's variance doubles at every block, and the logits of a ResNet-152 would overflow FP16.

    Args:
        model: Changed in place.
        seed: Same seed, same weights. The global generator is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    branch_ends = {
        id(block.bn2 if isinstance(block, BasicBlock) else block.bn3)
        for block in model.modules()
        if isinstance(block, BasicBlock | Bottleneck)
    }
    branch_scale = min(0.3, 1.2 / len(branch_ends) ** 0.5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.05, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                _randomise_norm(module, branch_scale if id(module) in branch_ends else 1.0, generator)
    return model


def _randomise_norm(norm: nn.BatchNorm2d, scale: float, generator: torch.Generator) -> None:
    norm.weight.uniform_(0.5 * scale, 1.5 * scale, generator=generator)
    norm.bias.normal_(0.0, 0.1, generator=generator)
    norm.get_buffer("running_mean").normal_(0.0, 0.1, generator=generator)
    norm.get_buffer("running_var").uniform_(0.5, 1.5, generator=generator)
    norm.get_buffer("num_batches_tracked").zero_()


def build_random(blueprint: Blueprint, seed: int = 0) -> ResNet:
    """The network of a blueprint with :func:`randomise`'s weights, in evaluation mode."""
    return randomise(build_empty(blueprint).to_empty(device="cpu"), seed)
