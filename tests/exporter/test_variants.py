from __future__ import annotations

import pytest
import torchvision

from exporter.models.resnet import build_empty
from exporter.models.variants import (
    CIFAR_DEPTHS,
    IMAGENET_NAMES,
    NAMES,
    blueprint_for,
    cifar_blueprint,
    cifar_name,
    is_variant,
)
from runtimes.errors import ArchitectureError, ModelSourceError


@pytest.mark.parametrize(
    ("name", "depth"), [(name, int("".join(c for c in name.split("_")[-2 if "_" in name else 0] if c.isdigit())))
                        for name in IMAGENET_NAMES]
)  # fmt: skip
def test_an_imagenet_network_has_the_depth_of_its_name(name, depth):
    assert blueprint_for(name).depth == depth


def test_the_ten_imagenet_names_are_those_that_torchvision_calls_resnets():
    theirs = {name for name in torchvision.models.list_models(torchvision.models) if "resne" in name}
    assert set(IMAGENET_NAMES) == theirs


# He et al. 2015, table 6, in millions.
@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_a_cifar_network_has_the_papers_depth_and_parameters(depth, millions):
    blueprint = blueprint_for(f"resnet{depth}")
    parameters = sum(tensor.numel() for tensor in build_empty(blueprint).parameters())
    assert blueprint.depth == depth
    assert round(parameters / 1e6, 1 if depth > 100 else 2) == millions
    assert blueprint.shortcut_option == "A"
    assert blueprint.input_size == 32


@pytest.mark.parametrize("depth", [*CIFAR_DEPTHS[:-1], 8, 50, 164])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_the_name_of_a_cifar_network_gives_the_same_network_back(depth, option):
    blueprint = cifar_blueprint(depth, option=option)
    assert blueprint.name == cifar_name(depth, option)
    assert blueprint_for(blueprint.name) == blueprint


def test_resnet50_is_imagenets_and_cifar_resnet50_is_not():
    assert blueprint_for("resnet50").family == "imagenet"
    assert blueprint_for("cifar_resnet50").family == "cifar"


@pytest.mark.parametrize(("depth", "nearest"), [(21, 20), (0, 8), (-4, 8), (9, 8), (109, 110), (2, 8)])
def test_a_depth_that_is_not_6n_plus_2_is_refused_with_the_nearest(depth, nearest):
    with pytest.raises(ArchitectureError, match=rf"6n\+2 .*got {depth}; the nearest is {nearest}$"):
        cifar_blueprint(depth)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet51", "resnet50"), ("ResNet-18", "resnet18"), ("resnext50", "resnext50_32x4d"), ("wide_resnet50", "wide_")],
)
def test_an_unknown_name_gives_the_nearest_ones(name, nearest):
    assert not is_variant(name)
    with pytest.raises(ModelSourceError, match=f"unknown model '{name}': the nearest are .*{nearest}"):
        blueprint_for(name)


def test_a_name_like_no_other_gives_all_of_them():
    with pytest.raises(ModelSourceError) as refused:
        blueprint_for("qqqq")
    assert all(name in str(refused.value) for name in NAMES)


@pytest.mark.parametrize(
    "name", ["resnet18_a", "resnet20_d", "resnet21", "cifar_resnet", "cifar_resnet20_", " resnet18"]
)
def test_a_near_miss_is_no_variant(name):
    assert not is_variant(name)


def test_classes_and_channels_are_the_familys_unless_given():
    assert (blueprint_for("resnet18").num_classes, blueprint_for("resnet20").num_classes) == (1000, 10)
    blueprint = blueprint_for("resnet20", num_classes=3, in_channels=1)
    assert (blueprint.num_classes, blueprint.in_channels) == (3, 1)
    with pytest.raises(ArchitectureError, match="num_classes"):
        blueprint_for("resnet18", num_classes=0)
