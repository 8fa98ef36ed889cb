from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from exporter.files import file_sha256
from exporter.models.checkpoint import load_checkpoint
from exporter.models.infer import infer
from exporter.models.naming import rename
from exporter.models.resnet import build_random
from exporter.models.source import load_model
from exporter.models.variants import blueprint_for, cifar_blueprint
from runtimes.errors import ArchitectureError, CheckpointError
from tests.exporter.networks import image, prefixed, run, save

pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:.*torch.jit.trace", "ignore:Validating sparse"
)
MODEL = build_random(cifar_blueprint(8, option="B"))
STATE = MODEL.state_dict()
OTHER = build_random(cifar_blueprint(8, option="B"), seed=1).state_dict()
LEGACY = {"_use_new_zipfile_serialization": False}


def write(folder: Path, form: str) -> Path:
    path = folder / f"weights.{form}"
    if form == "safetensors":
        save_file(dict(STATE), path)
        return path
    return save(STATE, path, **(LEGACY if form == "legacy" else {}))


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    message = str(refusal.value)
    assert message
    assert "\n" not in message
    return message


FORMS = ["zip", "legacy", "safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_outputs_as_the_network_that_was_saved(tmp_path, form):
    loaded = load_model(str(write(tmp_path, form)))
    assert loaded.name == "cifar_resnet8_b"
    assert torch.equal(run(loaded.module, image()), run(MODEL, image()))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_refused_as_truncated_or_damaged(tmp_path, form):
    data = write(tmp_path, form).read_bytes()
    cut = tmp_path / "cut.pth"
    points = {1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 63, 64, 65, 512, 4096, len(data) - 1, len(data) - 2, len(data) - 22}
    for point in sorted(points | {len(data) * part // 30 for part in range(1, 30)}):
        cut.write_bytes(data[:point])
        refused(cut)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bytes_are_refused_or_still_a_network_and_never_another_error(tmp_path, form):
    data = write(tmp_path, form).read_bytes()
    generator = random.Random(form)
    path = tmp_path / "flipped.pth"
    outcomes = []
    # The first and the last kilobytes hold the structure; between them are numbers.
    places = [*range(0, 2000, 45), *range(len(data) - 4000, len(data), 90), *generator.sample(range(len(data)), 25)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= generator.randrange(1, 256)
        path.write_bytes(flipped)
        try:
            infer(rename(load_checkpoint(path).tensors))
            outcomes.append(True)
        except (CheckpointError, ArchitectureError) as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes.append(False)
    assert any(outcomes)
    assert not all(outcomes)


def test_a_damaged_state_dict_is_called_damaged_and_not_dangerous(tmp_path):
    path = write(tmp_path, "zip")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    broken = tmp_path / "broken.pth"
    with zipfile.ZipFile(broken, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"bn1", b"\xff\xfe\xfd", 1) if name.endswith("data.pkl") else data)
    assert "truncated or damaged" in refused(broken)


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_a_newer_pickle_protocol_is_refused_as_that_and_not_as_damage(tmp_path, options):
    assert load_checkpoint(save(STATE, tmp_path / "a.pth", pickle_protocol=3, **options)).wrapper == ""
    message = refused(save(STATE, tmp_path / "a.pth", pickle_protocol=4, **options))
    assert "uses pickle protocol 4" in message
    assert "truncated" not in message


# --- where the weights are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE}, "model"),
        ({"net": STATE, "acc": 93.1, "epoch": 7}, "net"),
        ({"ema": STATE}, "ema"),
        ({"ema": {"module": STATE}}, "ema.module"),
        ({"model_state_dict": STATE, "loss": torch.tensor(0.3)}, "model_state_dict"),
        ({"checkpoint": {"trainer": {"weights": STATE}}}, "checkpoint.trainer.weights"),
        ({"state_dict": STATE, "mean": torch.zeros(1, 3, 1, 1), "example": torch.zeros(2, 3, 8, 8)}, "state_dict"),
        (dict(STATE), ""),
    ],
)
def test_weights_are_found_where_training_scripts_put_them(tmp_path, content, wrapper):
    checkpoint = load_checkpoint(save(content, tmp_path / "a.pth"))
    assert checkpoint.wrapper == wrapper
    assert checkpoint.tensors.keys() == STATE.keys()
    assert checkpoint.others == ()


@pytest.mark.parametrize(
    ("content", "other"),
    [
        ({"ema": OTHER, "model": STATE}, "ema"),
        ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict_ema"),
        ({"model": STATE, "ema": {"module": OTHER}}, "ema.module"),
    ],
)
def test_plain_weights_are_preferred_to_averaged_ones_and_the_choice_is_reported(tmp_path, content, other):
    path = save(content, tmp_path / "a.pth")
    checkpoint = load_checkpoint(path)
    assert torch.equal(checkpoint.tensors["conv1.weight"], STATE["conv1.weight"])
    assert checkpoint.others == (other,)
    assert torch.equal(load_checkpoint(path, other).tensors["conv1.weight"], OTHER["conv1.weight"])


def test_an_unknown_key_is_refused_with_the_places_that_have_weights(tmp_path):
    path = save({"model": STATE, "ema": {"module": OTHER}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no weights under 'teacher'; places with weights: model, ema\.module"):
        load_checkpoint(path, "teacher")


@pytest.mark.parametrize("key", ["ema_model", "state_dict.ema_model"])
def test_a_key_may_be_the_prefix_of_one_of_two_models(tmp_path, key):
    both = {**prefixed(STATE, "model."), **prefixed(OTHER, "ema_model.")}
    path = save({"state_dict": both}, tmp_path / "a.ckpt")
    chosen = rename(load_checkpoint(path, key).tensors).tensors
    assert torch.equal(chosen["conv1.weight"], OTHER["conv1.weight"])
    with pytest.raises(CheckpointError, match="--checkpoint-key PREFIX"):
        rename(load_checkpoint(path).tensors)


def test_moments_of_an_optimizer_are_not_mistaken_for_weights(tmp_path):
    moments = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in STATE.items() if tensor.dim() == 4}
    flat = {f"{name}.momentum_buffer": torch.zeros_like(tensor) for name, tensor in STATE.items() if tensor.dim() == 4}
    optimizer = torch.optim.Adam(MODEL.parameters())
    content = {
        "optimizer": {"state": dict(enumerate(moments.values()))},
        "opt": {"state": moments},
        "buffers": flat,
        "optim_g": dict(STATE),
        "optimizer_states": [optimizer.state_dict()],
        "lr_scheduler": {"base": [0.1]},
        "state_dict": STATE,
    }
    checkpoint = load_checkpoint(save(content, tmp_path / "a.pth"))
    assert (checkpoint.wrapper, checkpoint.others) == ("state_dict", ())


def test_arguments_scores_arrays_and_paths_may_stand_beside_the_weights(tmp_path):
    content = {
        "state_dict": STATE,
        "args": argparse.Namespace(lr=0.1, milestones=[1, 2], data=pathlib.PosixPath("data")),
        "best": [kind(1) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)],
        "history": np.arange(4.0),
        "pytorch-lightning_version": "2.1.0",
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9)}},
        "hyper_parameters": OrderedDict(depth=8),
        "rng": [torch.get_rng_state(), None],
    }
    for options in ({}, LEGACY):
        assert load_checkpoint(save(content, tmp_path / "a.ckpt", **options)).wrapper == "state_dict"


def test_scores_of_an_older_numpy_are_no_obstacle(tmp_path):
    path = save({"state_dict": STATE, "best": np.float64(3)}, tmp_path / "new.pth")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(old, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in old.read_bytes()
    assert load_checkpoint(old).wrapper == "state_dict"


def test_a_mapping_that_holds_itself_ends(tmp_path):
    knot: dict[str, Any] = {f"key{index}": None for index in range(200)}
    knot = dict.fromkeys(knot, knot)
    for key in knot:
        knot[key] = knot
    assert "no convolution weights" in refused(save(knot, tmp_path / "a.pth"))


@pytest.mark.parametrize("content", [{}, None, [STATE], torch.zeros(3), {"state_dict": {}}, "weights", {3: 4}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    assert "expected a state dict" in refused(save(content, tmp_path / "a.pth"))


# --- files that are no checkpoint --------------------------------------------------------------------------------


def test_a_path_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder.pth").mkdir()
    assert refused(tmp_path / "none.pth").endswith("no such file")
    assert "is not a regular file" in refused(tmp_path / "pipe.pth")
    assert "is empty (0 bytes)" in refused(tmp_path / "empty.pth")
    assert "is a folder" in refused(tmp_path / "folder.pth")
    assert "cannot be read" in refused(tmp_path / "empty.pth" / "inside.pth")
    assert "cannot be read" in refused(tmp_path / ("x" * 5000 + ".pth"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with 'version https://git-lfs"),
        (b"<!DOCTYPE html>", "begins with '<!DOCTYPE html>'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "bytes 89 50 4e 47"),
        (b"\x80", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (b"cos\nsystem\n(S'true'\ntR.", "begins with 'cos'"),
    ],
)
def test_other_kinds_of_files_are_refused_by_what_they_begin_with(tmp_path, data, says):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    assert says in refused(path)


def test_archives_that_torch_save_did_not_write_are_refused(tmp_path):
    path = write(tmp_path, "zip")
    deflated = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
        bomb.writestr("weights/data/99", bytes(50_000_000))
    assert deflated.stat().st_size < 5_000_000
    assert "compressed entries" in refused(deflated)
    with zipfile.ZipFile(tmp_path / "docs.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "without a data.pkl" in refused(tmp_path / "docs.pth")
    with tarfile.open(tmp_path / "a.pth.tar", "w") as tar:
        tar.add(path, "a.pth")
    assert "is a tar archive" in refused(tmp_path / "a.pth.tar")
    torch.jit.trace(MODEL, image()).save(str(tmp_path / "script.pt"))
    assert "TorchScript" in refused(tmp_path / "script.pt")


# --- files that would run code -----------------------------------------------------------------------------------


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path, form, protocol):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    content = {"state_dict": STATE, "epoch": Bomb(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"epoch": Bomb(marker)}, protocol))
    else:
        save(content, path, pickle_protocol=protocol, **(LEGACY if form == "legacy" else {}))
    message = refused(path)
    assert not marker.exists()
    assert "would run" in message
    assert f"{os.system.__module__}.system" in message
    assert "torch.save(model.state_dict()" in message


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    ("module", "named"),
    [
        (torchvision.models.resnet18(), "torchvision.models.resnet."),
        (MODEL, "exporter.models.resnet."),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), "torch.nn.modules."),
    ],
)
def test_a_whole_pickled_module_is_refused_with_the_way_to_save_its_weights(tmp_path, module, named, options):
    message = refused(save(module, tmp_path / "a.pth", **options))
    assert f"holds a whole pickled module ({named}" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message


def test_a_name_that_the_file_chose_cannot_break_the_message(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x04\x8c\x08evil\nmod\x8c\x03\x1b[2\x93)R.")
    assert "evil\\nmod" in refused(path)


# --- tensors that are not what they say --------------------------------------------------------------------------


def test_a_tensor_that_claims_more_than_it_stores_is_refused(tmp_path):
    huge = {**STATE, "conv1.weight": torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)}
    assert "conv1.weight claims 39,582,418,599,936 bytes but stores 4" in refused(save(huge, tmp_path / "a.pth"))


def test_tensors_without_values_are_refused(tmp_path):
    meta = {name: tensor.to("meta") for name, tensor in STATE.items()}
    assert "has a shape and no values" in refused(save(meta, tmp_path / "a.pth"))


def test_sparse_tensors_are_refused(tmp_path):
    sparse = {**STATE, "fc.weight": STATE["fc.weight"].to_sparse()}
    assert "fc.weight is a torch.sparse_coo" in refused(save(sparse, tmp_path / "a.pth"))


def test_a_loaded_network_does_not_change_when_its_file_is_overwritten(tmp_path):
    path = write(tmp_path, "zip")
    module = load_model(str(path)).module
    before = run(module, image())
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
    assert torch.equal(run(module, image()), before)


def test_the_hash_is_that_of_the_bytes_and_the_same_twice(tmp_path):
    path = write(tmp_path, "zip")
    assert file_sha256(path) == load_checkpoint(path).sha256 == load_model(str(path)).sha256
    before = load_model(str(path)).sha256
    path.write_bytes(path.read_bytes() + b"\0")
    assert file_sha256(path) != before


def test_refused_networks_do_not_leave_torch_with_more_trusted_classes(tmp_path):
    before = set(map(str, torch.serialization.get_safe_globals()))
    load_checkpoint(write(tmp_path, "zip"))
    refused(save(blueprint_for, tmp_path / "a.pth"))
    assert set(map(str, torch.serialization.get_safe_globals())) == before
