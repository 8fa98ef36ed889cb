"""What is left of the messages of foreign libraries: what happened, and not where in their sources."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtimes.openvino import _reason
from runtimes.ort import _first_line

SIGNATURE = (
    "/onnxruntime_src/core/framework/op_kernel.cc:83 virtual OrtValue* onnxruntime::OpKernelContext::OutputMLValue("
    "int, const onnxruntime::TensorShape&) "
)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {SIGNATURE}it did not fit", "it did not fit"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. Name:'a' "
            f"Status Message: {SIGNATURE}it did not fit",
            "Non-zero status code returned while running Add node. Name:'a' Status Message: it did not fit",
        ),
        ("x.cc:7 void f(T&) const [with T = a<b, c>; U = d] it did not fit", "it did not fit"),
    ],
)
def test_onnxruntime_without_signatures(message: str, told: str) -> None:
    assert _first_line(RuntimeError(message)) == told


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Exception from src/a.cpp:1:\nLoading input model\nbad magic", "bad magic"),
        ("Exception from src/a.cpp:1:\nCheck 'a == b' failed at src/b.cpp:2:\nLoading input model\n",
         "OpenVINO's check 'a == b' failed"),
        ("Model wasn't fully converted. Failed:\n-- MaxPool-17 with a message:\nWhile validating ONNX node 'x': Check\n"
         "Expected kernel size 2. Got: 1\n", "Expected kernel size 2. Got: 1"),
    ],
)  # fmt: skip
def test_openvino_without_places_and_headings(message: str, told: str) -> None:
    assert _reason(RuntimeError(message)) == told


@pytest.mark.parametrize("shortened", [_reason, _first_line])
def test_a_long_message_is_cut(shortened: Callable[[Exception], str]) -> None:
    told = shortened(RuntimeError("x" * 5000))
    assert len(told) <= 241
