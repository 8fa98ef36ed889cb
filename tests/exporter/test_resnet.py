from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F  # noqa: N812

from exporter.models.resnet import SubsampleShortcut, build, build_empty, build_random
from exporter.models.variants import IMAGENET_NAMES, blueprint_for, cifar_blueprint
from tests.exporter.networks import Akamaster, image, run, scramble


def shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]


def theirs(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return model


@pytest.mark.parametrize("name", IMAGENET_NAMES)
def test_names_and_shapes_are_torchvisions_in_torchvisions_order(name):
    assert shapes(build_empty(blueprint_for(name))) == shapes(theirs(name))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_outputs_are_torchvisions_bit_for_bit(name):
    mine = build_random(blueprint_for(name))
    oracle = theirs(name).to_empty(device="cpu").eval()
    oracle.load_state_dict(mine.state_dict())
    x = image(side=64)
    expected = run(oracle, x)
    assert expected.isfinite().all()
    assert expected.std() > 0.01
    assert torch.equal(run(mine, x), expected)


def test_outputs_of_option_a_are_those_of_its_public_implementation():
    oracle = scramble(Akamaster(n=2))
    mine = build(cifar_blueprint(14))
    mine.load_state_dict({name.replace("linear", "fc"): tensor for name, tensor in oracle.state_dict().items()})
    # Not bit for bit: their last pool is a window, ours is adaptive, and the two add up in another order.
    torch.testing.assert_close(run(mine, image()), run(oracle, image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("planes", [32, 64])
def test_option_a_is_a_subsample_between_zero_channels(planes):
    x = image(planes // 2, side=7)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
    assert torch.equal(SubsampleShortcut(planes // 2, planes, 2)(x), expected)


def test_option_a_puts_an_odd_channel_behind():
    result = SubsampleShortcut(2, 5, 1)(torch.ones(1, 2, 1, 1)).flatten().tolist()
    assert result == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("side", [32, 33, 17])
def test_every_shortcut_option_runs_at_even_and_odd_sizes(option, side):
    model = build_random(cifar_blueprint(8, option=option, num_classes=5, in_channels=2))
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: tuple(output.shape[1:])})
        )
    logits = run(model, image(2, side))
    half, quarter = (side + 1) // 2, (side + 3) // 4
    assert seen == {"layer1": (16, side, side), "layer2": (32, half, half), "layer3": (64, quarter, quarter)}
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_options_differ_in_parameters_by_their_projections_alone():
    count = {
        option: sum(tensor.numel() for tensor in build_empty(cifar_blueprint(20, option=option)).parameters())
        for option in ("A", "B", "C")
    }
    changing = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    keeping = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert count["B"] - count["A"] == changing
    assert count["C"] - count["B"] == keeping


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    block = build_empty(blueprint_for("resnet50")).get_submodule("layer2.0")
    strides = [block.get_submodule(f"conv{number}").stride for number in (1, 2, 3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_random_weights_repeat_for_a_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (build_random(blueprint_for("resnet20"), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_random_batchnorms_are_no_identity_and_deep_networks_stay_in_the_range_of_fp16():
    model = build_random(blueprint_for("resnet110"))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_mean.abs().max() > 0.01
        assert norm.weight.std() > 0
    assert run(model, image()).abs().max() < 1000


def test_a_built_network_is_in_evaluation_mode():
    for model in (build(blueprint_for("resnet20")), build_random(blueprint_for("resnet20"))):
        assert not any(module.training for module in model.modules())


def test_an_empty_network_has_no_storage():
    assert {tensor.device.type for tensor in build_empty(blueprint_for("resnet152")).state_dict().values()} == {"meta"}
