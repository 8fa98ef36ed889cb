from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exporter.models.blueprint import BlockPlan, Blueprint, Stem, plan_stage
from exporter.models.fit import check_tensors
from exporter.models.infer import infer
from exporter.models.naming import rename
from exporter.models.resnet import build, build_empty, build_random
from exporter.models.variants import NAMES, blueprint_for, cifar_blueprint
from runtimes.errors import ArchitectureError, CheckpointError, ResnetExportError

RESNET18 = build_random(blueprint_for("resnet18", num_classes=5)).state_dict()
CIFAR = build_random(cifar_blueprint(8, option="B")).state_dict()


def found(state: dict[str, Tensor]) -> Blueprint:
    return infer(rename(state)).blueprint


def concrete(blueprint: Blueprint) -> dict[str, Tensor]:
    return build_random(blueprint).state_dict()


def refused(state: dict[str, Tensor], error: type[ResnetExportError] = CheckpointError) -> str:
    with pytest.raises(error) as refusal:
        found(state)
    assert type(refusal.value) is error
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"resnet1202", "resnet152"}])
def test_every_variant_is_recognised_with_odd_classes_and_channels(name, monkeypatch):
    blueprint = blueprint_for(name, num_classes=37, in_channels=5)
    # The values are of no matter here, and ResNeXt-101 has 350 MB of them.
    monkeypatch.setattr("exporter.models.infer.check_tensors", lambda *_: None)
    assert found(build_empty(blueprint).state_dict()) == blueprint


@pytest.mark.parametrize("name", ["cifar_resnet8_b", "cifar_resnet14_c", "resnet20_b", "resnet20_c", "cifar_resnet50"])
def test_every_shortcut_option_is_recognised(name):
    assert found(concrete(blueprint_for(name, num_classes=3, in_channels=1))) == blueprint_for(
        name, num_classes=3, in_channels=1
    )


@st.composite
def blueprints(draw: Any) -> Blueprint:
    """Any network whose strides are by convention, because no tensor can tell them."""
    kind = draw(st.sampled_from(["basic", "bottleneck"]))
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.sampled_from([3, 5, 7]))
    stem = Stem(groups * draw(st.integers(1, 4)), kernel, 1 if kernel == 3 else 2, kernel != 3)
    depth = draw(st.integers(1, 4))
    # Option A is inferred for the CIFAR family only: elsewhere a missing projection is taken for a broken file.
    may_be_a = kind == "basic" and kernel == 3 and depth <= 3
    option = draw(st.sampled_from(["A", "B", "C"] if may_be_a else ["B", "C"]))
    channels = stem.channels
    stages: list[tuple[BlockPlan, ...]] = []
    for index in range(1, depth + 1):
        out = channels + groups * draw(st.integers(0, 3)) if option == "A" else groups * draw(st.integers(1, 6))
        width = out if kind == "basic" else groups * draw(st.integers(1, 4))
        stages.append(
            plan_stage(
                index, kind=kind, blocks=draw(st.integers(1, 3)), in_channels=channels, width=width,
                out_channels=out, stride=1 if index == 1 else 2, groups=groups, option=option,
            )
        )  # fmt: skip
        channels = out
    return Blueprint(
        "any", "cifar", draw(st.integers(1, 5)), stem, tuple(stages), draw(st.integers(1, 9)), draw(st.booleans())
    )


@settings(max_examples=60, deadline=None)
@given(blueprints())
def test_any_network_is_recognised_from_its_tensors(blueprint):
    result = found(build(blueprint).state_dict())
    assert result.stages == blueprint.stages
    assert result.stem == blueprint.stem
    assert (result.in_channels, result.num_classes) == (blueprint.in_channels, blueprint.num_classes)
    assert result.conv_bias == blueprint.conv_bias
    assert result.shortcut_option == blueprint.shortcut_option


def test_what_tensors_cannot_tell_is_reported_as_an_assumption():
    told = " ".join(infer(rename(concrete(cifar_blueprint(8)))).assumptions)
    assert "stem has stride 1 and no max pool" in told
    assert "halves the image" in told
    assert "option A puts half of its zero channels on each side" in told
    assert "option A" not in " ".join(infer(rename(CIFAR)).assumptions)


# --- blocks without their projection -----------------------------------------------------------------------------


def test_one_missing_projection_is_refused_with_block_channels_and_stride():
    state = {name: tensor for name, tensor in RESNET18.items() if not name.startswith("layer3.0.downsample")}
    message = refused(state, ArchitectureError)
    assert "block layer3.0: 128 channels in, 256 out, stride 2" in message
    assert "layer3.0.downsample.0.weight is missing" in message


def test_a_bottleneck_network_without_any_projection_is_refused():
    state = build_empty(blueprint_for("resnet50")).state_dict()
    message = refused({name: t for name, t in state.items() if "downsample" not in name}, ArchitectureError)
    assert "block layer1.0: 64 channels in, 256 out, stride 1" in message


# --- tensors that contradict each other --------------------------------------------------------------------------


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Any] = dict(CIFAR)
    for name, tensor in changes.items():
        state[name.replace("__", ".")] = tensor
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def filled(name: str, value: float) -> Tensor:
    tensor: Tensor = CIFAR[name].clone()
    tensor.view(-1)[0] = value
    return tensor


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (changed(layer2__0__bn2__bias=None), "missing: layer2.0.bn2.bias"),
        (changed(layer1__0__conv2__weight=None), "layer1.0.conv2.weight is missing"),
        (changed(extra__weight=torch.zeros(2)), "unexpected: extra.weight"),
        (changed(layer2__0__bn1__bias=torch.zeros(3)), "layer2.0.bn1.bias is [3], expected [32]"),
        (changed(layer2__0__conv1__weight=torch.zeros(32, 16, 5, 5)), "kernels of [5, 3] pixels"),
        (changed(layer2__0__conv1__weight=torch.zeros(32, 9, 3, 3)), "takes 9 channels, but what comes before"),
        (changed(layer2__0__conv1__weight=torch.zeros(32)), "layer2.0.conv1.weight is [32]: expected a convolution"),
        (changed(layer2__0__downsample__0__weight=torch.zeros(32, 16, 3, 3)), "expected a 1x1 projection"),
        (changed(conv1__weight=torch.zeros(16, 3, 4, 4)), "expected a square stem kernel of 3, 5 or 7"),
        (changed(conv1__weight=torch.zeros(16, 3, 3, 5)), "expected a square stem kernel of 3, 5 or 7"),
        (changed(fc__weight=None, fc__bias=None), "a backbone without its head"),
        (changed(fc__weight=torch.zeros(10, 65)), "fc.weight takes 65 features, but the last block gives 64"),
        (changed(fc__bias=torch.zeros(11)), "fc.bias is [11], expected [10]"),
        (changed(fc__weight=filled("fc.weight", float("nan"))), "fc.weight (1 NaN, 0 Inf of 640)"),
        (changed(bn1__bias=filled("bn1.bias", float("-inf"))), "bn1.bias (0 NaN, 1 Inf of 16)"),
        (changed(bn1__running_var=filled("bn1.running_var", -0.1)), "negative variances: bn1.running_var"),
        (changed(fc__weight=CIFAR["fc.weight"].double() * 1e300), "not finite: fc.weight"),
        (changed(fc__weight=CIFAR["fc.weight"].to(torch.int8)), "fc.weight is int8; quantised"),
        (changed(fc__weight=CIFAR["fc.weight"].to(torch.complex64)), "fc.weight is complex64"),
        ({n: t for n, t in CIFAR.items() if not n.startswith("layer2")}, "none between 1 and 3"),
        ({n.replace("layer2.0", "layer2.1"): t for n, t in CIFAR.items()}, "but no block 0 in that stage"),
    ],
)
def test_a_contradiction_is_refused_by_the_name_of_the_tensor(state, says):
    assert says in refused(state)


def test_classes_or_channels_of_zero_are_refused():
    refused(changed(fc__weight=torch.zeros(0, 64), fc__bias=torch.zeros(0)), ArchitectureError)
    refused(changed(conv1__weight=torch.zeros(16, 0, 3, 3)), ArchitectureError)
    refused(changed(conv1__weight=torch.zeros(0, 3, 3, 3)), ArchitectureError)


def test_a_long_list_of_differences_is_cut_and_counted():
    state = {name: tensor for name, tensor in CIFAR.items() if "bn" not in name}
    assert "missing: bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var and 24 more" in refused(state)


def test_a_state_dict_is_held_against_the_network_that_was_asked_for():
    with pytest.raises(CheckpointError, match=r"does not fit resnet18: .*missing"):
        check_tensors(blueprint_for("resnet18"), rename(CIFAR))


# --- networks that are not ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet50d", "a stem of several convolutions"),
        ("resnet50c", "a stem of several convolutions"),
        ("seresnet18", "squeeze-and-excitation"),
        ("legacy_seresnet18", "squeeze-and-excitation"),
        ("resnetv2_50", "pre-activation ResNet (arXiv 1603.05027)"),
        ("res2net50_26w_4s", "layer1.0.conv2.weight is missing"),
        ("skresnet18", "layer1.0.conv1.weight is missing"),
        ("vgg11", "not the checkpoint of a ResNet: it has no conv1.weight"),
        ("vit_tiny_patch16_224", "its tensors begin cls_token, pos_embed"),
        ("densenet121", "not the checkpoint of a ResNet"),
        ("convnext_atto", "expected a square stem kernel"),
        ("regnetx_002", "it has no layer1.0.conv1.weight"),
        ("mobilenetv3_small_050", "not the checkpoint of a ResNet"),
    ],
)
def test_another_network_is_refused_by_its_kind_or_by_what_is_missing(name, says):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    message = refused(state)
    assert says in message
    assert "timm:NAME" in message


def test_a_resnet_d_shortcut_behind_a_plain_stem_is_refused():
    state = {name.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1"): tensor
             for name, tensor in RESNET18.items()}  # fmt: skip
    assert "layer2.0.downsample.1.weight: a ResNet-D shortcut" in refused(state)


def test_a_folded_checkpoint_is_refused_as_folded():
    state: dict[str, Tensor] = {}
    for name, tensor in torchvision.models.resnet18().state_dict().items():
        if ".bn" in name or name.startswith("bn") or ".downsample.1." in name:
            continue
        state[name] = tensor
        if name.endswith("weight") and tensor.dim() == 4:
            state[name.replace("weight", "bias")] = torch.zeros(len(tensor))
    assert "layer1.0.conv1.bias has no BatchNorm beside it" in refused(state)


def test_a_pre_activation_block_is_refused_by_the_channels_of_its_batchnorm():
    state = changed(layer2__0__bn1__weight=torch.ones(16), layer2__0__bn1__bias=torch.ones(16))
    assert "layer2.0.bn1.weight has the 16 channels that layer2.0.conv1.weight takes, not the 32" in refused(state)


def test_an_imagenet_network_without_its_projections_is_a_broken_file_and_not_option_a() -> None:
    state = build(blueprint_for("resnet18")).state_dict()
    bare = {name: tensor for name, tensor in state.items() if ".downsample." not in name}
    with pytest.raises(ArchitectureError, match=r"layer2\.0: 64 channels in, 128 out, stride 2"):
        found(bare)
