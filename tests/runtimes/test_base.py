from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from runtimes.base import TensorSpec
from runtimes.errors import TensorError
from tests.runtimes.models import CLASSES, FunctionRuntime, images, linear, weights
from tests.runtimes.scripted import FakeClock, ScriptedRuntime

SPEC = TensorSpec("input", "float32", (None, 3, 8, 8))


@pytest.mark.parametrize("rows", [1, 7])
def test_a_fitting_array_passes_with_any_batch_size(rows):
    SPEC.check(np.zeros((rows, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("array", "received"),
    [
        (np.zeros((1, 3, 8, 8)), r"float64 \[1, 3, 8, 8\]"),
        (np.zeros((1, 3, 8, 8), ">f4"), ">f4"),
        (np.zeros((3, 8, 8), np.float32), r"float32 \[3, 8, 8\]"),
        (np.zeros((1, 8, 8, 3), np.float32), r"float32 \[1, 8, 8, 3\]"),
        (np.zeros((0, 3, 8, 8), np.float32), r"float32 \[0, 3, 8, 8\]"),
        ([[1.0]], "list"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_tensor_received_and_expected(array, received):
    with pytest.raises(TensorError, match=rf"'input'.*{received}.*expected .*float32 \[any, 3, 8, 8\]"):
        SPEC.check(array)


def test_a_runtime_that_is_not_open_refuses_to_run():
    runtime = FunctionRuntime(linear(weights()))
    with pytest.raises(RuntimeError, match="not open"):
        runtime.run(images())
    with runtime:
        runtime.run(images())
    with pytest.raises(RuntimeError, match="not open"):
        runtime.run(images())


def test_a_runtime_that_is_open_is_not_opened_again():
    with FunctionRuntime(linear(weights())) as runtime, pytest.raises(RuntimeError, match="already open"):
        runtime.__enter__()
    assert (runtime.opened, runtime.closed) == (1, 1)


def test_what_a_runtime_used_stays_known_after_it_was_closed():
    runtime = FunctionRuntime(linear(weights()))
    with pytest.raises(RuntimeError, match="not been opened"):
        _ = runtime.used
    with runtime:
        pass
    assert runtime.used == {"device": "cpu"}
    assert [spec.name for spec in (*runtime.inputs, *runtime.outputs)] == ["input", "logits"]


def test_a_runtime_that_fails_to_open_is_closed_and_stays_unopened():
    class Broken(FunctionRuntime):
        def _open(self):
            raise TensorError("half-way")

    runtime = Broken(linear(weights()))
    with pytest.raises(TensorError, match="half-way"):
        runtime.__enter__()
    assert runtime.closed == 1
    assert not runtime.is_open


def test_a_runtime_is_closed_when_its_block_raises():
    runtime = FunctionRuntime(linear(weights()))
    with pytest.raises(KeyError), runtime:
        raise KeyError
    assert runtime.closed == 1


@pytest.mark.parametrize(
    "batch",
    [
        images().astype(np.float64),
        images()[0],
        images()[:0],
        np.zeros((2, 4, 4, 4), np.float32),
    ],
)
def test_a_batch_that_does_not_fit_never_reaches_the_backend(batch):
    def unreachable(_):
        pytest.fail("the backend was called")

    with FunctionRuntime(unreachable) as runtime, pytest.raises(TensorError, match="function: tensor 'input'"):
        runtime.run(batch)


@pytest.mark.parametrize(
    "output",
    [
        None,
        [[1.0] * CLASSES] * 2,
        np.zeros((2, CLASSES)),
        np.zeros((2, CLASSES), np.int64),
        np.zeros(CLASSES, np.float32),
        np.zeros((2, CLASSES, 1, 1), np.float32),
        np.zeros((1, CLASSES), np.float32),
        np.zeros((4, CLASSES), np.float32),
        np.zeros((2, CLASSES + 1), np.float32),
        np.zeros((2, 0), np.float32),
    ],
)
def test_an_output_of_another_shape_or_type_is_refused_by_the_name_of_the_runtime(output):
    with (
        FunctionRuntime(lambda _: output, name="odd", classes=CLASSES) as runtime,
        pytest.raises(TensorError, match=r"odd: .*'logits'"),
    ):
        runtime.run(images(2))


def test_a_runtime_that_reuses_its_buffer_hands_out_independent_arrays():
    buffer = np.zeros((2, CLASSES), np.float32)

    def into_buffer(batch):
        buffer[:] = linear(weights())(batch)
        return buffer

    first, second = images(2, seed=1), images(2, seed=2)
    with FunctionRuntime(into_buffer) as runtime:
        before = runtime.run(first)
        runtime.run(second)
    np.testing.assert_array_equal(before, linear(weights())(first))
    assert not np.shares_memory(before, buffer)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_result_is_float32_in_c_order_and_too_large_a_value_becomes_infinite_without_a_warning(kind, recwarn):
    class Declared(FunctionRuntime):
        def _open(self):
            return replace(super()._open(), output=TensorSpec("logits", kind, (None, None)))

    huge = np.asfortranarray(np.full((2, CLASSES), np.finfo(kind).max, kind))
    with Declared(lambda _: huge) as runtime:
        result = runtime.run(images(2))
    assert result.dtype == np.float32
    assert result.flags["C_CONTIGUOUS"]
    assert result.flags["OWNDATA"]
    assert np.isinf(result).all() == (kind == "float64")
    assert not recwarn.list


def test_a_backend_gets_contiguous_memory_from_a_strided_view():
    seen = []

    def look(batch):
        seen.append(batch.flags["C_CONTIGUOUS"])
        return linear(weights())(batch)

    flipped = images()[:, ::-1]
    with FunctionRuntime(look) as runtime:
        np.testing.assert_allclose(runtime.run(flipped), linear(weights())(flipped), rtol=1e-6)
    assert seen == [True]


def test_importing_the_runtimes_loads_no_framework():
    code = (
        "import runtimes.base, runtimes.eager, runtimes.ort, runtimes.statistics, runtimes.tolerance, runtimes.parity\n"
        "import sys\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'exporter', 'calibration'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("batch", "expected"), [(None, (1, None)), (1, (1, 1)), (8, (8, 8))])
def test_the_batches_that_are_computed_as_they_are_are_those_of_the_input(batch, expected):
    runtime = ScriptedRuntime(FakeClock(), lambda _: 1, batch=batch)
    with pytest.raises(RuntimeError, match="not been opened"):
        _ = runtime.batch_range
    with runtime:
        pass
    assert runtime.batch_range == expected
