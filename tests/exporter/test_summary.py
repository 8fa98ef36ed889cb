from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exporter.models.blueprint import Blueprint, Stem, plan_stage
from exporter.models.resnet import ResNet, build, build_empty
from exporter.models.summary import summarise, summarise_module
from exporter.models.variants import IMAGENET_NAMES, blueprint_for, cifar_blueprint
from runtimes.errors import GraphError

CASES = [
    *((name, (224, 224)) for name in IMAGENET_NAMES),
    ("resnet20", (32, 32)),
    ("cifar_resnet14_b", (33, 47)),
    ("cifar_resnet14_c", (31, 18)),
    ("resnet50", (97, 161)),
]


def odd() -> Blueprint:
    """Grouped basic blocks, biases, a 5x5 stem."""
    stages = (
        plan_stage(1, kind="basic", blocks=2, in_channels=8, width=12, out_channels=12, stride=1, groups=2),
        plan_stage(2, kind="basic", blocks=1, in_channels=12, width=16, out_channels=16, stride=3, groups=4),
    )
    return Blueprint("odd", "imagenet", 2, Stem(8, 5, 2, True), stages, 3, conv_bias=True)


def measured(model: ResNet, size: tuple[int, int]) -> tuple[int, dict[str, int], dict[str, tuple[int, ...]]]:
    """MACs of all and of each child, and shapes, by running the network on ``meta``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, model.blueprint.in_channels, *size, device="meta"))
    modules = {name.removeprefix("ResNet."): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return counter.get_total_flops() // 2, modules, shapes


def parameters(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


@pytest.mark.parametrize(("blueprint", "size"), [*((blueprint_for(n), s) for n, s in CASES), (odd(), (61, 40))])
def test_parameters_macs_and_shapes_are_those_of_the_network_that_runs(blueprint, size):
    model = build_empty(blueprint)
    summary = summarise(blueprint, size)
    macs, by_module, shapes = measured(model, size)
    assert summary.parameters == parameters(model)
    assert summary.macs == macs
    assert sum(stage.macs for stage in summary.stages) == macs
    for stage in summary.stages[1:]:
        assert stage.parameters == parameters(model.get_submodule(stage.name))
        assert stage.output == tuple(size for size in shapes[stage.name] if stage.name != "avgpool" or size != 1)
        assert stage.macs == by_module.get(stage.name, 0)
        for block in stage.blocks:
            assert block.parameters == parameters(model.get_submodule(block.name))
            assert block.output == shapes[block.name]
            assert block.macs == by_module[block.name]
    stem = summary.stages[0]
    assert stem.output == shapes["maxpool" if blueprint.stem.pool else "conv1"]
    assert stem.macs == by_module["conv1"]


def test_the_best_known_counts_come_out():
    summary = summarise(blueprint_for("resnet50"), (224, 224))
    assert summary.parameters == 25_557_032  # torchvision's documentation
    assert round(summary.macs / 1e9, 2) == 4.09
    assert summary.receptive_field == 427  # 483 counts the paper's stride on the first 1x1 convolution


def extent(model: nn.Module, layer: str, channels: int, side: int) -> int:
    """Side of the square of input pixels whose gradient reaches the middle output of ``layer``."""
    caught: list[torch.Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    x = torch.rand(1, channels, side, side, requires_grad=True)
    model(x)
    middle = caught[0].shape[-1] // 2
    caught[0][0, :, middle, middle].sum().backward()
    assert x.grad is not None
    touched = x.grad[0].abs().sum(0).nonzero()
    spans = touched.max(0).values - touched.min(0).values + 1
    assert spans[0] == spans[1]
    return int(spans[0])


@pytest.mark.parametrize("blueprint", [cifar_blueprint(8, option="A"), cifar_blueprint(14, option="B"), odd()])
def test_the_receptive_field_is_the_extent_of_the_gradient(blueprint):
    model = build(blueprint)
    with torch.no_grad():
        for name, tensor in model.named_parameters():  # positive, so that no ReLU stops a gradient and none cancel
            tensor.fill_(0.0 if name.endswith("bias") else 0.05)
    if blueprint.stem.pool:  # a max pool passes one gradient of nine; an average has the same window and passes all
        model.maxpool = nn.AvgPool2d(3, 2, 1)  # type: ignore[assignment]
    summary = summarise(blueprint, (128, 128))
    for stage in summary.stages:
        if stage.name.startswith("layer"):
            assert extent(model, stage.name, blueprint.in_channels, 128) == stage.receptive_field
    assert summary.receptive_field == summary.stages[-3].receptive_field
    assert [stage.stride for stage in summary.stages[-3:]] == [blueprint.total_stride, 0, 0]


def test_every_block_says_why_its_branches_can_be_added():
    checks = [block.check for stage in summarise(cifar_blueprint(14), (32, 32)).stages for block in stage.blocks]
    assert checks[0] == "same shape (16), identity fits"
    assert checks[2] == "16→32, stride 2: subsampled and zero-padded (option A)"
    projected = summarise(cifar_blueprint(8, option="B"), (32, 32)).stages[2].blocks[0].check
    assert projected == "16→32, stride 2: projected by a 1x1 convolution"


def test_the_summary_of_a_module_agrees_with_that_of_its_blueprint():
    blueprint = cifar_blueprint(14, option="B", num_classes=7)
    planned = summarise(blueprint, (32, 32))
    ran = summarise_module(build_empty(blueprint), blueprint.name, (3, 32, 32))
    assert (ran.parameters, ran.macs, ran.classes) == (planned.parameters, planned.macs, planned.classes)
    rows = {stage.name: (stage.output, stage.parameters, stage.macs) for stage in ran.stages}
    for stage in planned.stages:
        if stage.name.startswith("layer") or stage.name == "fc":
            assert rows[stage.name] == (stage.output, stage.parameters, stage.macs)
    assert ran.receptive_field is None


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Conv2d(5, 4, 3), r"cannot take an image of \[3, 8, 8\]"),
        (nn.Conv2d(3, 4, 3), r"does not return logits"),
        (nn.MaxPool2d(2, return_indices=True), "does not return logits"),
    ],
)
def test_a_module_that_is_no_classifier_is_refused(module, says):
    with pytest.raises(GraphError, match=says):
        summarise_module(module, "x", (3, 8, 8))


def test_a_summary_is_json():
    value = json.loads(json.dumps(summarise(blueprint_for("resnet18"), (64, 64)).to_json()))
    assert value["stages"][1]["blocks"][0]["shortcut"] == "identity"
    assert value["input"] == [3, 64, 64]
