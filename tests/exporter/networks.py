"""Networks as other people write them, small, which the tests of this folder use as independent oracles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def scramble(module: nn.Module, seed: int = 0) -> Any:
    """Random weights and BatchNorm statistics, so that no layer is a no-op; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(0, 0.2, generator=generator)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.2, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def image(channels: int = 3, side: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(7))


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = module(x)
    return output


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class KuangliuBlock(nn.Module):
    """github kuangliu/pytorch-cifar, models/resnet.py: ``shortcut`` is empty or a projection."""

    def __init__(self, in_planes: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = planes * (4 if bottleneck else 1)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + self.shortcut(x))


class Kuangliu(nn.Module):
    """Four stages, a 3x3 stem without pool, a classifier named ``linear``; 32 px (a 4-pixel average pool)."""

    def __init__(self, blocks: tuple[int, ...] = (1, 2, 1, 1), planes: int = 8, bottleneck: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        channels = planes
        for index, count in enumerate(blocks):
            stage = []
            for position in range(count):
                width = planes * 2**index
                stride = 2 if index and not position else 1
                stage.append(KuangliuBlock(channels, width, stride, bottleneck))
                channels = width * (4 if bottleneck else 1)
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for index in range(1, 5):
            out = self.get_submodule(f"layer{index}")(out)
        result: Tensor = self.linear(F.avg_pool2d(out, 4).flatten(1))
        return result


class LambdaLayer(nn.Module):
    """github akamaster/pytorch_resnet_cifar10: the parameter-free shortcut, verbatim in its arithmetic."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)


class AkamasterBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = LambdaLayer(planes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Akamaster(nn.Module):
    """ResNet-(6n+2) for CIFAR-10 with option A."""

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        channels = 16
        for index, planes in enumerate((16, 32, 64), start=1):
            stage = []
            for position in range(n):
                stage.append(AkamasterBlock(channels, planes, 2 if index > 1 and not position else 1))
                channels = planes
            self.add_module(f"layer{index}", nn.Sequential(*stage))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for index in (1, 2, 3):
            out = self.get_submodule(f"layer{index}")(out)
        result: Tensor = self.linear(F.avg_pool2d(out, out.shape[3]).flatten(1))
        return result


class WeiaicunzaiBlock(nn.Module):
    """github weiaicunzai/pytorch-cifar100: the whole branch is one ``residual_function``."""

    def __init__(self, in_planes: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = planes * (4 if bottleneck else 1)
        if bottleneck:
            layers = [
                nn.Conv2d(in_planes, planes, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU(),
                nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU(),
                nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out),
            ]  # fmt: skip
        else:
            layers = [
                nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes), nn.ReLU(),
                nn.Conv2d(planes, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
            ]  # fmt: skip
        self.residual_function = nn.Sequential(*layers)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual_function(x) + self.shortcut(x))


class Weiaicunzai(nn.Module):
    def __init__(self, bottleneck: bool = False, classes: int = 100) -> None:
        super().__init__()
        planes = 8
        self.conv1 = nn.Sequential(nn.Conv2d(3, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes), nn.ReLU())
        channels = planes
        for index, count in enumerate((1, 2, 1, 1)):
            stage = []
            for position in range(count):
                width = planes * 2**index
                stage.append(WeiaicunzaiBlock(channels, width, 2 if index and not position else 1, bottleneck))
                channels = width * (4 if bottleneck else 1)
            self.add_module(f"conv{index + 2}_x", nn.Sequential(*stage))
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for index in range(2, 6):
            out = self.get_submodule(f"conv{index}_x")(out)
        result: Tensor = self.fc(self.avg_pool(out).flatten(1))
        return result
