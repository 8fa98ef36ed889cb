from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from exporter.models.resnet import build_random
from exporter.models.source import LoadedModel, SourceOptions, load_model, state_sha256
from exporter.models.variants import blueprint_for
from runtimes.errors import ArchitectureError, CheckpointError, ModelSourceError, ResnetExportError, UnavailableError
from tests.exporter.networks import image, prefixed, run, save

FACTORY = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).mean((2, 3)))

class Holder:
    make = Small

ready = Small()
number = 3

def raises():
    raise RuntimeError("first line\\nsecond line")

def leaves():
    raise SystemExit(2)

def no_convolution():
    return nn.Linear(3, 3)
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """The name of a module in the current folder, new for each test because imports are cached."""
    name = "factory_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(FACTORY)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0\n")
    (tmp_path / f"{name}_script.py").write_text("import sys\nsys.exit(2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return name


def refused(model: str, error: type[ResnetExportError] = ModelSourceError, **options: Any) -> str:
    with pytest.raises(error) as refusal:
        load_model(model, SourceOptions(**options))
    assert type(refusal.value) is error
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def load(model: str, **options: Any) -> LoadedModel:
    return load_model(model, SourceOptions(**options))


# --- variants ----------------------------------------------------------------------------------------------------


def test_an_unknown_model_gives_the_nearest_names():
    assert "the nearest are resnet56, resnet50" in refused("resnet55")
    assert "known are resnet18" in refused("")
    refused("x" * 5000)


def test_a_variant_without_weights_says_how_to_give_them():
    message = refused("resnet50")
    assert "--weights FILE, --weights random or --weights DEFAULT" in message
    assert load("resnet50", shapes_only=True).module.get_parameter("fc.weight").device.type == "meta"


def test_random_weights_repeat_for_a_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (load("resnet20", weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.sha256 == second.sha256 != other.sha256
    assert torch.equal(run(first.module, image()), run(second.module, image()))
    assert first.notes == ("random weights, seed 1",)


def test_a_loaded_model_says_what_its_input_is():
    loaded = load("resnet20", weights="random", in_channels=1, num_classes=3, input_size=(40, 48))
    assert (loaded.in_channels, loaded.size, loaded.kind, loaded.name) == (1, (40, 48), "variant", "resnet20")
    assert (loaded.preprocessing.channels, loaded.preprocessing.size) == (1, (40, 48))
    assert run(loaded.module, torch.zeros(1, 1, 40, 48)).shape == (1, 3)
    assert load("resnet18", shapes_only=True).size == (224, 224)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 32), ("resnet20", 4)])
def test_an_input_smaller_than_the_networks_stride_is_refused(name, stride):
    message = refused(name, weights="random", input_size=(stride, stride - 1))
    assert f"too small for {name}" in message
    assert f"at least {stride}x{stride}" in message
    loaded = load(name, weights="random", input_size=(stride, stride))
    assert run(loaded.module, image(side=stride)).isfinite().all()


@pytest.mark.parametrize("options", [{"in_channels": 0}, {"num_classes": 0}, {"num_classes": -1}])
def test_counts_below_one_are_refused(options):
    assert "at least 1" in refused("resnet20", ArchitectureError, weights="random", **options)


@pytest.fixture
def weights_file(tmp_path):
    return save(build_random(blueprint_for("resnet20", num_classes=7)).state_dict(), tmp_path / "a.pth")


def test_a_variant_takes_weights_from_a_file(weights_file):
    loaded = load("resnet20", weights=str(weights_file), num_classes=7)
    alone = load(str(weights_file))
    assert loaded.sha256 == alone.sha256
    assert (loaded.kind, alone.kind) == ("variant", "checkpoint")
    assert torch.equal(run(loaded.module, image()), run(alone.module, image()))


def test_a_wrong_class_count_names_the_flag_that_mends_it(weights_file):
    message = refused("resnet20", CheckpointError, weights=str(weights_file))
    assert "has 7 classes, and resnet20 was to have 10: give --num-classes 7" in message
    message = refused("resnet20", CheckpointError, weights=str(weights_file), num_classes=7, in_channels=1)
    assert "give --in-channels 3" in message
    assert "7 classes, and --num-classes says 8" in refused(str(weights_file), CheckpointError, num_classes=8)
    assert "3 input channels, and --in-channels says 1" in refused(str(weights_file), CheckpointError, in_channels=1)
    assert load(str(weights_file), num_classes=7, in_channels=3).name == "resnet20"


def test_weights_of_another_variant_are_refused_with_the_one_they_fit(weights_file):
    message = refused("resnet32", CheckpointError, weights=str(weights_file), num_classes=7)
    assert "missing: layer1.3.conv1.weight" in message
    assert "the file looks like resnet20, not resnet32" in message


def test_weights_beside_a_checkpoint_are_refused(weights_file):
    assert "leave out --weights" in refused(str(weights_file), weights="random")


def test_paths_that_are_no_checkpoint_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert "is an ONNX file already" in refused("model.onnx")
    assert "folder is a folder" in refused("folder")
    assert "is a folder" in refused(str(tmp_path), CheckpointError)
    assert "no such file" in refused("missing.pth", CheckpointError)
    assert "no such file" in refused("resnet20", CheckpointError, weights="missing.pth")


# --- torchvision's download --------------------------------------------------------------------------------------


def test_a_download_that_fails_is_the_environments_fault_and_names_the_file(monkeypatch):
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    message = refused("resnet18", UnavailableError, weights="DEFAULT")
    assert "resnet18-f37072fd.pth" in message
    assert "--weights FILE" in message
    assert UnavailableError.exit_code == 3


@functools.cache
def downloaded() -> Mapping[str, torch.Tensor]:
    return build_random(blueprint_for("resnet50")).state_dict()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: downloaded())


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(("size", "resize"), [(None, 232), ((320, 320), 331), ((64, 96), 99)])
def test_downloaded_weights_bring_the_resize_that_they_were_measured_with(size, resize):
    loaded = load("resnet50", weights="DEFAULT", input_size=size)
    assert loaded.preprocessing.resize == resize
    assert loaded.preprocessing.size == (size or (224, 224))
    assert loaded.sha256 == state_sha256(loaded.module)


@pytest.mark.usefixtures("online")
def test_downloaded_weights_have_their_own_classes():
    assert "give --num-classes 1000" in refused("resnet50", CheckpointError, weights="DEFAULT", num_classes=10)
    assert "torchvision has no weights for resnet20" in refused("resnet20", weights="DEFAULT")


# --- timm --------------------------------------------------------------------------------------------------------


def test_timm_networks_repeat_for_a_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    options = {"weights": "random", "num_classes": 3, "in_channels": 1}
    first, second, other = (load("timm:resnet10t", seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.sha256 == second.sha256 != other.sha256
    assert run(first.module, image(1, 64)).shape == (2, 3)
    assert (first.kind, first.in_channels, first.preprocessing.channels) == ("timm", 1, 1)


def test_timm_preprocessing_covers_an_input_that_is_not_square():
    loaded = load("timm:resnet10t", weights="random", input_size=(64, 96))
    assert loaded.preprocessing.size == (64, 96)
    assert loaded.preprocessing.resize is not None
    assert loaded.preprocessing.resize >= 96


def test_an_unknown_timm_name_gives_the_nearest(tmp_path):
    assert "the nearest are" in refused("timm:resnet10x", weights="random")
    assert "timm has no model ''" in refused("timm:", weights="random")
    assert "needs weights" in refused("timm:resnet10t")
    assert "no such file" in refused("timm:resnet10t", CheckpointError, weights=str(tmp_path / "missing.pth"))


def test_timm_without_a_network_is_the_environments_fault(monkeypatch):
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("timm.create_model", offline)
    assert "cannot be downloaded" in refused("timm:resnet10t", UnavailableError, weights="DEFAULT")


# --- factories ---------------------------------------------------------------------------------------------------


def test_a_factory_in_the_current_folder_gives_its_module(factory):
    for attribute in ("Small", "Holder.make", "ready"):
        loaded = load(f"{factory}:{attribute}")
        assert (loaded.kind, loaded.in_channels, loaded.name) == ("factory", 2, f"{factory}:{attribute}")
        assert run(loaded.module, image(2)).shape == (2, 4)
        assert not loaded.module.training


def test_a_factory_is_called_with_a_seed_and_leaves_the_global_generator_alone(factory):
    before = torch.get_rng_state()
    first, second, other = (load(f"{factory}:Small", weights="random", seed=seed).sha256 for seed in (1, 1, 2))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("no_such_module_here:f", "no_such_module_here cannot be imported"),
        ("{}:missing", "has no attribute 'missing'"),
        ("{}:", "has no attribute ''"),
        ("{}:raises", "raised RuntimeError: first line"),
        ("{}:leaves", "raised SystemExit: 2"),
        ("{}:number", "raised TypeError"),
        ("{}:torch.tensor", "raised TypeError"),
        ("{}:torch.get_num_threads", "gives int: expected a torch.nn.Module"),
        ("{}:no_convolution", "has no convolution"),
        ("{}_broken:f", "importing it raised ZeroDivisionError"),
        ("{}_script:f", "importing it raised SystemExit"),
        (":f", "importing it raised ValueError"),
    ],
)
def test_a_factory_that_gives_no_module_is_refused(factory, target, says):
    assert says in refused(target.format(factory))


def test_options_that_a_factory_cannot_follow_are_refused(factory):
    assert "leave out --num-classes" in refused(f"{factory}:Small", num_classes=9)
    assert "no weights to download" in refused(f"{factory}:Small", weights="DEFAULT")


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_factory_takes_weights_from_a_file(factory, tmp_path, prefix):
    source = load(f"{factory}:Small", weights="random", seed=5)
    state = {**prefixed(source.module.state_dict(), prefix), "total_ops": torch.zeros(1)}
    path = save({"state_dict": state}, tmp_path / "a.pth")
    if prefix:
        path = save(prefixed(source.module.state_dict(), prefix), tmp_path / "a.pth")
    loaded = load(f"{factory}:Small", weights=str(path))
    assert torch.equal(run(loaded.module, image(2)), run(source.module, image(2)))
    assert loaded.sha256 == load(f"{factory}:Small", weights=str(path)).sha256


def test_weights_that_do_not_fit_a_factory_are_refused_by_name(factory, tmp_path):
    state = dict(load(f"{factory}:Small").module.state_dict())
    path = tmp_path / "a.pth"
    target = f"{factory}:Small"
    save({name: tensor for name, tensor in state.items() if name != "last.bias"}, path)
    assert f"does not fit {target}: missing: last.bias" in refused(target, CheckpointError, weights=str(path))
    save({**state, "extra": torch.zeros(1)}, path)
    assert "unexpected: extra" in refused(target, CheckpointError, weights=str(path))
    save({**state, "last.weight": torch.zeros(5, 8)}, path)
    assert "last.weight is [5, 8], expected [4, 8]" in refused(target, CheckpointError, weights=str(path))
    save({**state, "last.bias": torch.full((4,), float("nan"))}, path)
    assert "last.bias (4 NaN" in refused(target, CheckpointError, weights=str(path))


# --- hashes ------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_module_depends_on_names_types_shapes_and_values():
    def make(weight: torch.Tensor, name: str = "a") -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, weight)
        return module

    base = torch.arange(6.0).reshape(2, 3)
    variants = [make(base), make(base, "b"), make(base.double()), make(base.T), make(base.reshape(6)), make(-base)]
    assert len({state_sha256(module) for module in variants}) == len(variants)
    assert state_sha256(make(base)) == state_sha256(make(base.clone()))


def test_a_torchvision_state_dict_is_the_variant_it_came_from(tmp_path):
    path = save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "anything.bin")
    loaded = load(str(path))
    assert (loaded.name, loaded.size, loaded.blueprint) == (
        "resnet18", (224, 224), blueprint_for("resnet18", num_classes=4),
    )  # fmt: skip


def test_weights_that_a_factory_gives_itself_are_not_called_random():
    notes = load_model("torchvision.models:resnet18", SourceOptions(weights="random", seed=3)).notes
    assert notes == ("the weights that its code gives it, seed 3",)


def test_an_eps_is_refused_where_code_sets_it():
    with pytest.raises(ModelSourceError, match="leave out --bn-eps"):
        load_model("timm:resnet10t", SourceOptions(weights="random", norm_eps=1e-3))


def test_a_small_timm_network_is_cropped_after_its_resize():
    contract = load_model("timm:resnet10t", SourceOptions(weights="random", input_size=(32, 32))).preprocessing
    assert (contract.size, contract.crop) == ((32, 32), "center")
    assert contract.resize is not None
    assert contract.resize >= 32
