from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.models.blueprint import BlockPlan, Blueprint, Stem, plan_stage
from exporter.models.resnet import BasicBlock, Bottleneck
from exporter.models.variants import NAMES, blueprint_for, cifar_blueprint
from runtimes.errors import ArchitectureError

STEM = Stem(4, 3, 1, False)


def stage(index: int = 1, **changes: Any) -> tuple[BlockPlan, ...]:
    values: dict[str, Any] = {
        "kind": "basic",
        "blocks": 1,
        "in_channels": 4,
        "width": 4,
        "out_channels": 4,
        "stride": 1,
    }
    return plan_stage(index, **(values | changes))


@pytest.mark.parametrize(("in_channels", "out", "stride"), [(64, 128, 2), (64, 64, 2), (64, 128, 1)])
def test_a_block_that_changes_shape_without_a_projection_is_refused_with_name_channels_and_stride(
    in_channels, out, stride
):
    with pytest.raises(ArchitectureError) as refused:
        BlockPlan("layer2.0", "basic", in_channels, out, out, stride)
    message = str(refused.value)
    assert message.startswith(f"block layer2.0: {in_channels} channels in, {out} out, stride {stride}:")
    assert "shortcut='projection'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stride": 0}, "at least 1"),
        ({"groups": -1}, "at least 1"),
        ({"width": 2.0}, "whole number"),
        ({"stride": True}, "whole number"),
        ({"in_channels": "4"}, "whole number"),
        ({"kind": "invertible"}, "'invertible' is none of basic, bottleneck"),
        ({"shortcut": "conv"}, "'conv' is none of identity, projection, subsample"),
        ({"width": 8}, "width is 8"),
        ({"groups": 3}, "not divisible by 3 groups"),
        ({"in_channels": 3, "groups": 2, "shortcut": "projection"}, "3 channels are not divisible by 2 groups"),
        ({"in_channels": 8, "shortcut": "subsample"}, "cannot take any away"),
    ],
)
def test_an_impossible_block_is_refused(changes, says):
    values: dict[str, Any] = {
        "name": "layer1.0", "kind": "basic", "in_channels": 4, "width": 4, "out_channels": 4, "stride": 1,
    }  # fmt: skip
    BlockPlan(**values)
    with pytest.raises(ArchitectureError, match=says) as refused:
        BlockPlan(**(values | changes))
    assert "block layer1.0" in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["basic", "bottleneck"]),
    in_channels=st.integers(0, 9),
    width=st.integers(0, 9),
    out_channels=st.integers(0, 9),
    stride=st.integers(0, 4),
    groups=st.integers(0, 4),
    shortcut=st.sampled_from(["identity", "projection", "subsample"]),
    side=st.integers(1, 9),
)
def test_a_plan_is_either_refused_or_its_two_branches_really_add(
    kind, in_channels, width, out_channels, stride, groups, shortcut, side
):
    width = out_channels if kind == "basic" and width % 2 else width  # half of the basic plans are sound in this
    try:
        plan = BlockPlan("layer1.0", kind, in_channels, width, out_channels, stride, groups, shortcut)
    except ArchitectureError as refused:
        assert "block layer1.0" in str(refused)  # noqa: PT017
        return
    block = (BasicBlock if kind == "basic" else Bottleneck)(plan).eval()
    with torch.no_grad():
        result = block(torch.randn(2, in_channels, side, side))
    after = (side - 1) // stride + 1
    assert result.shape == (2, out_channels, after, after)


def test_a_block_that_does_not_take_what_comes_before_it_is_refused():
    with pytest.raises(ArchitectureError, match=r"layer2\.0 takes 8 channels, but what comes before it gives 4"):
        Blueprint("x", "cifar", 3, STEM, (stage(), stage(2, in_channels=8, width=8, out_channels=8)), 10)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels"),
        ({"stages": ()}, "every stage needs at least one block"),
        ({"stages": (stage(), ())}, "every stage needs at least one block"),
        ({"stages": (stage(2),)}, r"block layer2\.0 stands where layer1\.0 belongs"),
    ],
)
def test_an_impossible_network_is_refused(changes, says):
    values: dict[str, Any] = {
        "name": "x", "family": "cifar", "in_channels": 3, "stem": STEM, "stages": (stage(),), "num_classes": 10,
    }  # fmt: skip
    Blueprint(**values)
    with pytest.raises(ArchitectureError, match=says):
        Blueprint(**(values | changes))


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(0, 3, 1), (4, 4, 1), (4, 3, 0), (4, 3.0, 1)])
def test_an_impossible_stem_is_refused(channels, kernel, stride):
    with pytest.raises(ArchitectureError, match=r"stem: .*the kernel odd"):
        Stem(channels, kernel, stride, pool=False)


@pytest.mark.parametrize("name", [*NAMES, "cifar_resnet8_b", "resnet20_c"])
def test_a_blueprint_survives_json(name):
    blueprint = blueprint_for(name, num_classes=7, in_channels=2)
    assert Blueprint.from_json(json.loads(json.dumps(blueprint.to_json()))) == blueprint


def test_a_damaged_json_blueprint_is_refused_and_not_half_read():
    whole = blueprint_for("resnet20").to_json()
    for name in ("name", "family", "in_channels", "stem", "stages", "num_classes", "conv_bias"):
        with pytest.raises(ArchitectureError, match="not a blueprint"):
            Blueprint.from_json({key: value for key, value in whole.items() if key != name})
    with pytest.raises(ArchitectureError, match="not a blueprint"):
        Blueprint.from_json(whole | {"stem": {"channels": 3, "colour": "red"}})
    broken = json.loads(json.dumps(whole))
    broken["stages"][1][0]["shortcut"] = "identity"
    with pytest.raises(ArchitectureError, match=r"block layer2\.0: 16 channels in, 32 out, stride 2"):
        Blueprint.from_json(broken)


OPTIONS: tuple[Literal["A", "B", "C"], ...] = ("A", "B", "C")


@pytest.mark.parametrize("option", OPTIONS)
def test_the_shortcut_option_is_read_back_from_the_blocks(option):
    blueprint = cifar_blueprint(14, option=option)
    assert blueprint.shortcut_option == option
    kinds = {(block.changes_shape, block.shortcut) for block in blueprint.blocks()}
    keeps = "projection" if option == "C" else "identity"
    assert kinds == {(True, "subsample" if option == "A" else "projection"), (False, keeps)}


def test_a_network_without_a_change_of_shape_has_no_option_and_a_mix_says_so():
    assert Blueprint("x", "cifar", 3, STEM, (stage(),), 10).shortcut_option == "none"
    wider = {"width": 8, "out_channels": 8}
    stages = (stage(**wider, option="A"), stage(2, in_channels=8, width=16, out_channels=16, option="B"))
    assert Blueprint("x", "cifar", 3, STEM, stages, 10).shortcut_option == "mixed"


def test_a_blueprint_can_be_read_without_torch():
    code = "import sys, exporter.models.blueprint, exporter.models.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
