"""What the tests of the linter's rules have in common: a graph that a rule finds, and one that it must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx

from calibration.lint import Finding, report
from tests.calibration.lint_graphs import Graph, Grid

TRT, ORT, OV = "tensorrt", "onnxruntime", "openvino"
Build = Callable[[Graph], Any]
HALF = {"kernel_shape": [2, 2], "strides": [2, 2]}
#: One scale for each of 16 channels.
CHANNELS = Grid(np.full(16, 0.02), np.full(16, 128))


class Case(NamedTuple):
    """One rule on two graphs.

    Attributes:
        rule: Its name.
        severities: How bad it is, by target.
        hit: Makes the smallest graph that has the fault, and gives its outputs.
        place: The only node that is named, and its tensor.
        message: Words of what was found.
        advice: Words of what to do.
        miss: Makes a graph that is nearly the same and has no such fault; or several of these.
        opset: Of the first graph.
        opset_of_miss: Of the others, where it is another.
    """

    rule: str
    severities: Mapping[str, str]
    hit: Build
    place: tuple[str, str]
    message: str
    advice: str
    miss: Build | tuple[Build, ...]
    opset: int = 17
    opset_of_miss: int = 0


def built(build: Build, opset: int = 17, **options: Any) -> onnx.ModelProto:
    """The model that a function makes of an empty graph."""
    graph = Graph(opset)
    made = build(graph)
    model: onnx.ModelProto = graph.model(*([made] if isinstance(made, str) else made), **options)
    return model


def findings(model: onnx.ModelProto, target: str, rule: str) -> list[Finding]:
    """What one rule says."""
    return [finding for finding in report(model, target).findings if finding.rule == rule]


def names(cases: tuple[Case, ...]) -> list[str]:
    """Names of tests."""
    return [f"{case.rule} {'/'.join(case.severities)} {case.message}" for case in cases]


def assert_found(case: Case) -> None:
    """The rule names one place only, and says what is the matter there, why, and what to do."""
    model = built(case.hit, case.opset)
    for target, severity in case.severities.items():
        [found] = findings(model, target, case.rule)
        assert (found.node, found.tensor) == case.place
        assert found.severity == severity
        assert case.message in found.message
        assert case.advice in found.advice
        assert report(model, target).reasons[case.rule]


def assert_left_alone(case: Case) -> None:
    """The rule says nothing of the other graphs."""
    for build in case.miss if isinstance(case.miss, tuple) else (case.miss,):
        model = built(build, case.opset_of_miss or case.opset)
        for target in case.severities:
            assert findings(model, target, case.rule) == []
