from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor

from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, InputError, UnavailableError
from runtimes.statistics import compare
from runtimes.torch_compile import TorchCompileRuntime
from tests.runtimes.models import CHANNELS, CLASSES, images


def small_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, CLASSES),
    ).eval()


def test_it_gives_what_the_module_gives_at_every_batch_size():
    module = small_network()
    with EagerRuntime(module) as eager, TorchCompileRuntime(module) as compiled:
        for count in (6, 1):
            assert compare(eager.run(images(count)), compiled.run(images(count))).sqnr_db > 120
        assert compiled.used["backend"] == "inductor"
        assert compiled.used["fp32"] == {"matmul": "ieee", "convolution": "ieee"}


@pytest.mark.parametrize("freezing", [False, True])
def test_weights_are_constants_with_freezing_and_only_then(freezing):
    module = small_network()
    with TorchCompileRuntime(module, freezing=freezing, channels_last=False) as runtime:
        first = runtime.run(images())
        with torch.no_grad():
            module[5].get_parameter("bias").add_(1.0)
        second = runtime.run(images())
        assert runtime.used["freezing"] is freezing
    np.testing.assert_allclose(second - first, 0.0 if freezing else 1.0, atol=1e-5)
    assert inductor.freezing is False  # of the process


def test_another_layout_and_dtype_are_given_to_a_copy():
    module = small_network()
    kept = copy.deepcopy(module.state_dict())
    with EagerRuntime(module) as eager, TorchCompileRuntime(module, dtype="bfloat16", channels_last=True) as compiled:
        sqnr = compare(eager.run(images()), compiled.run(images())).sqnr_db
    assert 30 < sqnr < 80
    assert all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())
    assert module[0].get_parameter("weight").is_contiguous()


def test_more_modules_of_one_class_than_torch_keeps_by_default_stay_compiled():
    class Scaled(torch.nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def forward(self, x):
            assert torch.compiler.is_compiling()  # eager code would say no
            return x.mean((2, 3)) * self.gain

    for gain in range(torch._dynamo.config.recompile_limit + 2):
        with TorchCompileRuntime(Scaled(float(gain)).eval()) as runtime:
            expected = images(1).mean((2, 3)) * gain
            np.testing.assert_allclose(runtime.run(images(1)), expected, rtol=1e-5, atol=1e-6)


def test_a_module_that_cannot_be_captured_whole_is_refused_in_one_line(capfd):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with TorchCompileRuntime(Branching().eval()) as runtime, pytest.raises(GraphError) as caught:
        runtime.run(images())
    assert "torch-compile: the module failed on [6, 3, 4, 4]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_compiler_is_the_machines_fault():
    with (
        inductor.patch({"cpp.cxx": ("absent-compiler",)}),
        pytest.raises(UnavailableError, match=r"no C\+\+ compiler was found .* install g\+\+") as caught,
    ):
        TorchCompileRuntime(small_network()).__enter__()
    assert "\n" not in str(caught.value)


def test_a_compiler_that_fails_is_the_machines_fault(tmp_path):
    fake = tmp_path / "broken-g++"
    # It says which version it is, as g++ does, and compiles nothing.
    says = 'case "$1" in --version) exec g++ --version;; esac\necho "x.cpp: error: no" >&2\nexit 1\n'
    fake.write_text(f"#!/bin/sh\n{says}")
    fake.chmod(0o755)
    module = torch.nn.Sequential(torch.nn.Hardsigmoid(), torch.nn.AvgPool2d(4), torch.nn.Flatten()).eval()
    with (
        inductor.patch({"cpp.cxx": (str(fake),)}),
        torch._inductor.utils.fresh_cache(),
        pytest.raises(UnavailableError, match=r"the C\+\+ compiler failed") as caught,
        TorchCompileRuntime(module) as runtime,
    ):
        runtime.run(images())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"mode": "fastest"}, {"dtype": "float8"}, {"threads": 0}])
def test_options_that_mean_nothing_are_wrong_usage(options):
    with pytest.raises(InputError, match="torch-compile: received"):
        TorchCompileRuntime(small_network(), **options)


def test_a_missing_torch_names_the_pip_line(monkeypatch):
    module = small_network()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match="pip install 'torch'"):
        TorchCompileRuntime(module).__enter__()
