from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, InputError, TensorError, UnavailableError
from tests.runtimes.models import CHANNELS, CLASSES, images


def small_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(CHANNELS, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, CLASSES),
    ).eval()


def test_it_gives_what_the_module_gives():
    module, batch = small_network(), images()
    with EagerRuntime(module) as runtime:
        output = runtime.run(batch)
    expected = module(torch.tensor(batch)).detach().numpy()
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, expected)


def test_a_module_that_works_in_place_leaves_the_images_alone():
    batch = images()
    kept = batch.copy()
    with EagerRuntime(small_network()) as runtime:
        runtime.run(batch)
    np.testing.assert_array_equal(batch, kept)


def test_read_only_and_flipped_images_are_taken_without_a_warning(recwarn):
    batch = images()
    batch.flags.writeable = False
    with EagerRuntime(small_network()) as runtime:
        runtime.run(batch)
        runtime.run(batch[:, ::-1, :, ::-1])
    assert not recwarn.list


def test_no_gradient_is_recorded():
    module = small_network()
    states = []
    module.register_forward_hook(lambda *_: states.append(torch.is_inference_mode_enabled()))
    with EagerRuntime(module) as runtime:
        runtime.run(images())
    assert states == [True]


def test_a_module_in_training_mode_is_refused_and_stays_as_it_is():
    module = small_network().train()
    with pytest.raises(InputError, match=r"the module is in training mode: call \.eval\(\)"):
        EagerRuntime(module).__enter__()
    assert module.training


def test_one_submodule_in_training_mode_is_enough_and_is_named():
    module = small_network()
    module[2].train()
    with pytest.raises(InputError, match="module '2' is in training mode"):
        EagerRuntime(module).__enter__()


def test_a_module_switched_to_training_after_the_opening_is_refused():
    module = small_network()
    with EagerRuntime(module) as runtime:
        runtime.run(images())
        module.train()
        with pytest.raises(InputError, match="training mode"):
            runtime.run(images())


def test_a_failure_inside_the_module_names_the_runtime_and_keeps_its_cause():
    with (
        EagerRuntime(small_network(), name="folded") as runtime,
        pytest.raises(GraphError, match=r"folded: the module failed on \[2, 5, 8, 8\]: .*channels") as caught,
    ):
        runtime.run(np.zeros((2, 5, 8, 8), np.float32))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "\n" not in str(caught.value)


def test_a_module_that_returns_a_tuple_is_refused():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    with EagerRuntime(Pair().eval()) as runtime, pytest.raises(TensorError, match="returned tuple"):
        runtime.run(images())


def test_a_module_without_a_class_dimension_is_refused():
    with EagerRuntime(torch.nn.Identity().eval()) as runtime, pytest.raises(TensorError, match="'logits'"):
        runtime.run(images())


def test_parameters_on_another_device_are_refused_and_not_moved():
    with torch.device("meta"):
        module = torch.nn.Linear(2, 2).eval()
    with pytest.raises(InputError, match=r"parameter 'weight' is on meta, expected cpu: call \.to\('cpu'\)"):
        EagerRuntime(module).__enter__()
    assert module.weight.device.type == "meta"


def test_an_unknown_device_is_wrong_usage():
    with pytest.raises(InputError, match="device 'toaster'"):
        EagerRuntime(small_network(), device="toaster").__enter__()


def test_a_missing_gpu_is_the_environments_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="no CUDA device"):
        EagerRuntime(small_network(), device="cuda").__enter__()


def test_a_missing_torch_names_the_pip_line(monkeypatch):
    module = small_network()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match="pip install 'torch'"):
        EagerRuntime(module).__enter__()


def test_what_it_runs_on_is_read_back():
    with EagerRuntime(small_network()) as runtime:
        assert runtime.used == {
            "torch": str(torch.__version__),
            "device": "cpu",
            "threads": torch.get_num_threads(),
        }
