"""The ranges of a quantised file, for the report."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from exporter.layer_ranges import quantised_ranges


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (np.array(0, np.int8), (-64.0, 63.5, 0.5)),
        (np.array(128, np.uint8), (-64.0, 63.5, 0.5)),
        (np.array(0, np.uint8), (0.0, 127.5, 0.5)),
        (None, (0.0, 127.5, 0.5)),
    ],
)
def test_a_range_is_what_the_smallest_and_largest_step_stand_for(
    zero: np.ndarray | None, expected: tuple[float, float, float]
) -> None:
    stored = [numpy_helper.from_array(np.array(0.5, np.float32), "s")]
    if zero is not None:
        stored.append(numpy_helper.from_array(zero, "z"))
    node = helper.make_node("QuantizeLinear", ["layer1.0.relu", "s", *(["z"] if zero is not None else [])], ["q"])
    assert quantised_ranges(helper.make_model(helper.make_graph([node], "g", [], [], stored))) == {
        "layer1.0.relu": expected
    }


def test_weights_and_computed_scales_are_left_out() -> None:
    stored = [
        numpy_helper.from_array(np.ones((2, 2), np.float32), "w"),
        numpy_helper.from_array(np.ones(2, np.float32), "ws"),
        numpy_helper.from_array(np.zeros(2, np.int8), "wz"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["a"], axis=0),
        helper.make_node("QuantizeLinear", ["x", "computed"], ["b"]),
        helper.make_node("QuantizeLinear", ["y", "ws", "wz"], ["c"], axis=0),
    ]
    assert quantised_ranges(helper.make_model(helper.make_graph(nodes, "g", [], [], stored))) == {}
