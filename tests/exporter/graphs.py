"""Tiny networks, ONNX graphs and measures for the tests of ``exporter.graph``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from exporter.graph.capture import Captured, InputShape, capture
from exporter.graph.fold import FoldResult, fold
from exporter.models.blueprint import Blueprint, Stem, plan_stage
from exporter.models.resnet import ResNet, build_random
from exporter.models.variants import Option, cifar_blueprint

SHAPE = InputShape(3, 8, 8)


class Net(nn.Module):
    """Layers given by name, and a forward given as a function of the network and the images."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getattr__(self, name: str) -> Any:
        """As torch's, but without its ``Tensor | Module``, of which neither half fits a layer in a lambda."""
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def net(forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> Net:
    """The same in evaluation mode, with BatchNorm statistics away from 0 and 1."""
    return settle(Net(forward, **layers).eval())


def settle(module: Net, seed: int = 0) -> Net:
    """Seeded statistics and affine parameters, of both signs, for every BatchNorm; in place."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            with torch.no_grad():
                if norm.affine:
                    norm.weight.normal_(0.0, 1.0, generator=generator)
                    norm.bias.normal_(0.0, 0.5, generator=generator)
                if norm.running_mean is not None and norm.running_var is not None:
                    norm.running_mean.normal_(0.0, 0.5, generator=generator)
                    norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return module


def conv_norm() -> Net:
    """The smallest network that has something to fold."""
    return net(
        lambda m, x: m.fc(torch.relu(m.bn(m.conv(x))).mean((2, 3))),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 5),
    )


def pre_activation() -> Net:
    """A BatchNorm that folds, and one that stays because it stands before its convolution."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.relu(m.stem_norm(m.stem(x)))
        x = x + m.conv(torch.relu(m.norm(x)))
        return m.fc(torch.flatten(m.pool(x), 1))  # type: ignore[no-any-return]

    return net(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(8),
        norm=nn.BatchNorm2d(8),
        conv=nn.Conv2d(8, 8, 3, padding=1),
        pool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(8, 5),
    )


def cifar(option: Option = "A") -> ResNet:
    return build_random(cifar_blueprint(8, option=option))


def bottleneck() -> ResNet:
    """Two bottleneck stages of one block, with a grouped 3x3 convolution and a pooled stem."""
    plans = [
        plan_stage(
            index,
            kind="bottleneck",
            blocks=1,
            in_channels=channels,
            width=8,
            out_channels=32,
            stride=stride,
            groups=2,
        )
        for index, channels, stride in ((1, 8, 1), (2, 32, 2))
    ]
    return build_random(Blueprint("mini", "cifar", 3, Stem(8, kernel=3, stride=2, pool=True), tuple(plans), 6))


def folded(module: nn.Module, shape: InputShape = SHAPE) -> FoldResult:
    return fold(capture(module, shape))


def captured(module: nn.Module, shape: InputShape = SHAPE) -> Captured:
    return capture(module, shape)


def images(count: int = 3, shape: InputShape = SHAPE, seed: int = 0) -> Tensor:
    """``[count, C, H, W]`` in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, shape.channels, shape.height, shape.width, generator=generator) * 2 - 1


def evaluate(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = module(x.clone())
    assert isinstance(output, Tensor)
    return output


def sqnr(reference: Tensor | npt.NDArray[np.generic], candidate: Tensor | npt.NDArray[np.generic]) -> float:
    """Decibels in float64; infinite for equal arrays, and shapes never broadcast."""
    signal = np.asarray(reference, np.float64)
    other = np.asarray(candidate, np.float64)
    assert signal.shape == other.shape
    noise = float(((signal - other) ** 2).sum())
    return math.inf if noise == 0 else 10 * math.log10(float((signal**2).sum()) / noise)


def ort_run(model: onnx.ModelProto, x: Tensor | npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The first output of a model in memory, without graph optimisations that could hide a wrong node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: npt.NDArray[np.generic] = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]
    return output


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[TensorProto] = (),
    opset: int = 18,
    dims: Sequence[int | str] = ("batch", 3, 8, 8),
    rank: int = 2,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A graph from ``input`` to ``logits``; a node without a name gets its first output's."""
    for node in nodes:
        node.name = node.name or node.output[0]
    result = helper.make_tensor_value_info("logits", element, [None] * rank)
    graph = helper.make_graph(
        list(nodes), "graph", [helper.make_tensor_value_info("input", element, dims)], [result], list(constants)
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
