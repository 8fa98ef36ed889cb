from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from exporter.models.blueprint import Blueprint, Stem, plan_stage
from exporter.models.infer import infer
from exporter.models.naming import rename
from exporter.models.resnet import build_random
from exporter.models.source import load_model
from exporter.models.variants import cifar_blueprint
from runtimes.errors import CheckpointError
from tests.exporter.networks import Akamaster, Kuangliu, Weiaicunzai, image, prefixed, run, save, scramble

MODEL = build_random(cifar_blueprint(14, option="B"))
STATE = MODEL.state_dict()


def same_outputs(folder, state: dict[str, Tensor], oracle: Any, side: int = 32) -> Any:
    """The network that is loaded from ``state``, once its outputs are those of ``oracle``."""
    loaded = load_model(str(save(state, folder / "a.pth")))
    expected = run(oracle, image(side=side))
    assert expected.std() > 0.01
    torch.testing.assert_close(run(loaded.module, image(side=side)), expected, rtol=1e-4, atol=1e-5)
    return loaded.blueprint


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "backbone.",
        "model.backbone.",
        "net.",
    ],
)
def test_a_wrappers_prefix_changes_nothing(tmp_path, prefix):
    assert same_outputs(tmp_path, prefixed(STATE, prefix), MODEL).name == "cifar_resnet14_b"
    assert rename(prefixed(STATE, prefix)).prefixes == tuple(prefix.split(".")[:-1])


@pytest.mark.parametrize("bottleneck", [False, True])
def test_kuangliu_names_give_the_same_outputs(tmp_path, bottleneck):
    oracle = scramble(Kuangliu(bottleneck=bottleneck))
    blueprint = same_outputs(tmp_path, {"net": prefixed(oracle.state_dict(), "module."), "acc": 9.0}, oracle)  # type: ignore[dict-item]
    assert [len(stage) for stage in blueprint.stages] == [1, 2, 1, 1]
    assert (blueprint.stem.channels, blueprint.stem.kernel, blueprint.stem.pool) == (8, 3, False)
    assert {block.kind for block in blueprint.blocks()} == {"bottleneck" if bottleneck else "basic"}
    assert blueprint.shortcut_option == "B"


def test_kuangliu_resnet18_is_known_by_its_3x3_stem(tmp_path):
    oracle = scramble(Kuangliu((2, 2, 2, 2), planes=64))
    blueprint = same_outputs(tmp_path, oracle.state_dict(), oracle)
    assert blueprint.name == "resnet18_3x3stem"
    assert blueprint.stem.channels == 64
    assert blueprint.input_size == 32


@pytest.mark.parametrize("n", [1, 3])
def test_akamaster_names_and_option_a_give_the_same_outputs(tmp_path, n):
    oracle = scramble(Akamaster(n))
    state = {"state_dict": prefixed(oracle.state_dict(), "module."), "best_prec1": 91.0}
    blueprint = same_outputs(tmp_path, state, oracle)  # type: ignore[arg-type]
    assert blueprint == cifar_blueprint(6 * n + 2)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_weiaicunzai_names_give_the_same_outputs(tmp_path, bottleneck):
    oracle = scramble(Weiaicunzai(bottleneck))
    assert "conv2_x.0.residual_function.0.weight" in oracle.state_dict()
    blueprint = same_outputs(tmp_path, oracle.state_dict(), oracle)
    assert [len(stage) for stage in blueprint.stages] == [1, 2, 1, 1]
    assert blueprint.num_classes == 100


@pytest.mark.parametrize("form", ["layers.{}.", "stages.{}.", "layers.{}.blocks.", "stages.{}.blocks.", "layer{}."])
def test_stages_counted_from_zero_give_the_same_outputs(tmp_path, form):
    state = {}
    for name, tensor in STATE.items():
        if name.startswith("layer"):
            name = form.format(int(name[5]) - 1) + name[7:]  # noqa: PLW2901
        state[name] = tensor
    assert same_outputs(tmp_path, state, MODEL).stages == MODEL.blueprint.stages


def test_torchvision_weights_in_half_precision_give_nearly_the_same_outputs(tmp_path):
    oracle = torchvision.models.resnet18(num_classes=7)
    scramble(oracle)
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in oracle.state_dict().items()
    }
    loaded = load_model(str(save(half, tmp_path / "a.pth")))
    oracle.load_state_dict(half)
    assert torch.equal(run(loaded.module, image(side=64)), run(oracle, image(side=64)))
    assert "weights stored as float16, used as float32" in loaded.notes
    assert {tensor.dtype for tensor in loaded.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "counter", ["total_ops", "total_params", "layer1.0.total_ops", "n_averaged", "fc.total_params"]
)
def test_counters_of_tools_are_left_out(tmp_path, counter):
    same_outputs(tmp_path, {**STATE, counter: torch.zeros(1, dtype=torch.float64)}, MODEL)


def test_batch_counters_may_be_missing(tmp_path):
    old = {name: tensor for name, tensor in STATE.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(STATE)
    same_outputs(tmp_path, old, MODEL)


@pytest.mark.parametrize("head", ["linear", "classifier", "classifier.1", "head.fc", "last_linear", "fc.0", "output"])
def test_the_classifier_may_have_another_name(tmp_path, head):
    same_outputs(tmp_path, {name.replace("fc.", f"{head}."): tensor for name, tensor in STATE.items()}, MODEL)


def test_letters_and_underscores_in_layer_names_are_understood(tmp_path):
    stage = plan_stage(1, kind="bottleneck", blocks=2, in_channels=8, width=8, out_channels=16, stride=1)
    model = build_random(Blueprint("small", "imagenet", 3, Stem(8, 7, 2, True), (stage,), 3))
    letters = str.maketrans("123", "abc")
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if len(parts) > 3 and parts[2][:2] in {"co", "bn"}:
            parts[2] = parts[2].translate(letters)
        state[".".join(parts).replace("downsample.0", "skip.conv").replace("downsample.1", "skip.bn")] = tensor
    assert "layer1.0.conva.weight" in state
    assert same_outputs(tmp_path, state, model, side=64).stages == (stage,)


def test_an_unknown_layer_keeps_its_owners_name_in_the_refusal(tmp_path):
    state = prefixed({**STATE, "layer@2.extra.weight": torch.zeros(3)}, "module.")
    with pytest.raises(CheckpointError, match=r"unexpected: module\.layer@2\.extra\.weight"):
        infer(rename(state))


def test_a_refusal_uses_the_names_of_the_file(tmp_path):
    state = {name.replace("layer", "stages."): tensor for name, tensor in STATE.items()}
    state["stages.2.0.conv1.weight"] = torch.zeros(32, 5, 3, 3)
    with pytest.raises(CheckpointError, match=r"stages\.2\.0\.conv1\.weight takes 5 channels, .*gives 16"):
        infer(rename(state))


def test_a_missing_stage_is_named_and_the_others_are_not_renumbered():
    state = {name: tensor for name, tensor in STATE.items() if not name.startswith("layer2")}
    with pytest.raises(CheckpointError, match="has stages 1, 3, and none between 1 and 3"):
        rename(state)


def test_two_models_in_one_mapping_are_refused_with_both_names():
    with pytest.raises(CheckpointError, match=r"'model\.conv1\.weight' and 'student\.conv1\.weight'"):
        rename({**prefixed(STATE, "model."), **prefixed(STATE, "student.")})


def test_endless_digits_are_only_a_name():
    assert (
        "layer" + "9" * 5000 + ".0.conv1.weight"
        in rename({"layer" + "9" * 5000 + ".0.conv1.weight": torch.zeros(1)}).tensors
    )
