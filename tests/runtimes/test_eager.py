from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, InputError, TensorError, UnavailableError
from runtimes.numerics import fp32_precision
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
            "dtype": "float32",
            "fp32": {"matmul": "ieee", "convolution": "ieee"},
        }


@pytest.fixture
def careless():
    """A process in which somebody allowed the CPU to compute FP32 in BF16."""
    convolution: Any = getattr(torch.backends.mkldnn, "conv")  # noqa: B009  (made at run time: mypy does not see it)
    before = torch.get_float32_matmul_precision(), convolution.fp32_precision
    torch.set_float32_matmul_precision("medium")
    convolution.fp32_precision = "bf16"
    yield
    torch.set_float32_matmul_precision(before[0])
    convolution.fp32_precision = before[1]


def test_fp32_is_computed_as_fp32_whatever_the_process_is_set_to(careless):
    seen = []
    module = small_network()
    module.register_forward_hook(lambda *_: seen.append(fp32_precision("cpu")))
    with EagerRuntime(module) as runtime:
        assert runtime.used["fp32"] == {"matmul": "ieee", "convolution": "ieee"}
        runtime.run(images())
    assert seen == [{"matmul": "ieee", "convolution": "ieee"}]


def test_the_settings_of_the_process_hold_again_after_a_run_and_after_a_failure(careless):
    with EagerRuntime(small_network(), threads=1) as runtime:
        runtime.run(images())
        with pytest.raises(GraphError):
            runtime.run(np.zeros((2, 5, 8, 8), np.float32))
    assert torch.get_float32_matmul_precision() == "medium"
    assert fp32_precision("cpu") == {"matmul": "bf16", "convolution": "bf16"}


def test_threads_are_those_asked_for_while_it_runs_and_then_the_processs_own():
    before = torch.get_num_threads()
    seen = []
    module = small_network()
    module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    with EagerRuntime(module, threads=before + 1) as runtime:
        assert runtime.used["threads"] == before + 1
        runtime.run(images())
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_another_dtype_rounds_a_copy_and_leaves_the_module_alone(dtype, bits):
    module, batch = small_network(), images()
    with EagerRuntime(module, dtype=dtype) as runtime:
        output = runtime.run(batch)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    expected = module(torch.tensor(batch)).detach().numpy()
    error = np.abs(output - expected).max() / np.abs(expected).max()
    # A handful of roundings of half a step each; without any the dtype would not have been used.
    assert 2.0 ** -(bits + 6) < error < 2.0 ** -(bits - 4)


def test_tf32_is_refused_where_no_gpu_computes():
    with pytest.raises(InputError, match="tf32 is a mode of CUDA devices, and the device is cpu"):
        EagerRuntime(small_network(), tf32=True).__enter__()


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"threads": 0}])
def test_options_that_mean_nothing_are_wrong_usage(options):
    with pytest.raises(InputError, match="eager: received"):
        EagerRuntime(small_network(), **options)


def test_a_module_that_is_out_of_memory_is_the_devices_fault():
    class Greedy(torch.nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with EagerRuntime(Greedy().eval()) as runtime, pytest.raises(UnavailableError, match="too little memory"):
        runtime.run(images())


@pytest.mark.gpu
def test_a_gpu_computes_fp32_as_fp32_and_tf32_only_when_asked():
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, 64, 3), torch.nn.Conv2d(64, 64, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()  # fmt: skip
    batch = np.random.default_rng(0).standard_normal((2, CHANNELS, 32, 32)).astype(np.float32)
    expected = module.double()(torch.tensor(batch).double()).detach().numpy()
    module.float().cuda()
    errors = {}
    for tf32 in (False, True):
        with EagerRuntime(module, device="cuda", tf32=tf32) as runtime:
            assert set(runtime.used["fp32"].values()) == {"tf32" if tf32 else "ieee"}
            errors[tf32] = np.abs(runtime.run(batch) - expected).max() / np.abs(expected).max()
    assert errors[False] < 2.0**-18 < errors[True]
