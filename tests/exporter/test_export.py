from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from exporter.graph.capture import Captured, InputShape, capture
from exporter.graph.check import structural_faults
from exporter.graph.export import Exporter, export
from runtimes.errors import GraphError
from tests.exporter.graphs import (
    SHAPE,
    Net,
    bottleneck,
    cifar,
    conv_norm,
    evaluate,
    folded,
    images,
    net,
    operators,
    ort_run,
    pre_activation,
    sqnr,
)

EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("make", [cifar, bottleneck, pre_activation], ids=["cifar", "bottleneck", "preact"])
def test_both_exporters_compute_the_same_and_name_the_same(make) -> None:
    module = make()
    result = folded(module)
    models = [export(result.captured, 17, exporter) for exporter in EXPORTERS]
    for count in (1, 7):
        x = images(count)
        for model in models:
            assert sqnr(evaluate(module, x), ort_run(model, x)) >= 100
    named = [{n.name: list(n.input[1:]) for n in m.graph.node if n.op_type in ("Conv", "Gemm")} for m in models]
    assert named[0] == named[1]
    assert all(structural_faults(model, SHAPE, 17, len(result.refused)) == [] for model in models)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("shape", [InputShape(3, 8, 8, batch=2), InputShape(3, 16, 16, dynamic_size=True)], ids=str)
def test_fixed_batches_and_free_sizes_reach_the_file(exporter: Exporter, shape: InputShape) -> None:
    module = cifar("B")
    model = export(folded(module, shape).captured, 17, exporter)
    assert structural_faults(model, shape, 17, 0) == []
    other = InputShape(3, 24, 17) if shape.dynamic_size else shape
    x = images(2, other)
    assert sqnr(evaluate(module, x), ort_run(model, x)) >= 100


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_captured_graph_is_left_as_it_was(exporter: Exporter) -> None:
    graph = folded(conv_norm()).captured
    before, text = {k: v.clone() for k, v in graph.module.state_dict().items()}, str(graph.module.graph)
    export(graph, 17, exporter)
    assert str(graph.module.graph) == text
    assert not graph.module.training
    assert all(torch.equal(value, before[name]) for name, value in graph.module.state_dict().items())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_export_prints_nothing(exporter: Exporter, capfd: pytest.CaptureFixture[str]) -> None:
    export(folded(cifar("B")).captured, 13, exporter)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_exporters_failure_is_one_line_that_names_it(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no translation of aten::frobnicate\nand a long story")

    graph = folded(conv_norm()).captured
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(GraphError) as caught:
        export(graph, 17, exporter)
    assert str(caught.value) == f"the {exporter} exporter cannot write this network: no translation of aten::frobnicate"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_exporter_that_gives_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = folded(conv_norm()).captured
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(GraphError, match="gave no program"):
        export(graph, 17, "torch.export")


def test_the_torchscript_exporter_refuses_an_opset_that_it_cannot_write() -> None:
    with pytest.raises(GraphError, match="wrote opset 18 where 20 was asked for"):
        export(folded(conv_norm()).captured, 20, "torchscript")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_equal_constants_are_read_without_identity_nodes(exporter: Exporter) -> None:
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        for conv in (a, b):
            assert conv.bias is not None
            conv.bias.zero_()
    module = net(lambda m, x: m.b(torch.relu(m.a(x))).mean((2, 3)), a=a, b=b)
    model = export(capture(module, SHAPE), 17, exporter)
    assert "Identity" not in operators(model)
    assert sqnr(evaluate(module, images()), ort_run(model, images())) >= 100


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_in_place_shortcut_keeps_its_meaning(exporter: Exporter) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.bn(m.conv(x))
        shortcut = y
        y = torch.relu_(m.conv2(y))
        y += shortcut
        shortcut.mul_(2)
        return m.fc((y + shortcut).mean((2, 3)))  # type: ignore[no-any-return]

    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "conv2": nn.Conv2d(4, 4, 1), "fc": nn.Linear(4, 2)}
    module = net(forward, **layers)
    model = export(folded(module).captured, 17, exporter)
    assert sqnr(evaluate(module, images()), ort_run(model, images())) >= 100


SCRIPT = """
import hashlib
from exporter.graph.export import export
from exporter.graph.precision import to_fp16
from tests.exporter.graphs import bottleneck, cifar, folded
for module in (cifar(), bottleneck()):
    graph = folded(module).captured
    for exporter in ("torch.export", "torchscript"):
        model = export(graph, 17, exporter)
        for kind in (model, to_fp16(model).model):
            print(hashlib.sha256(kind.SerializeToString(deterministic=True)).hexdigest())
"""


def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    runs = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        runs.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    first, second = (run.communicate(timeout=120)[0].split() for run in runs)
    assert len(first) == 8
    assert len(set(first)) == 8
    assert first == second


def test_a_second_export_in_one_process_gives_the_same_bytes() -> None:
    digests = set()
    for _ in range(2):
        model: onnx.ModelProto = export(folded(conv_norm_seeded()).captured, 13, "torch.export")
        digests.add(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
    assert len(digests) == 1


def conv_norm_seeded() -> Net:
    torch.manual_seed(0)
    return conv_norm()


def test_a_captured_graph_exports_without_a_fold() -> None:
    module = conv_norm()
    graph: Captured = capture(module, SHAPE)
    for exporter in EXPORTERS:
        assert sqnr(evaluate(module, images()), ort_run(export(graph, 17, exporter), images())) >= 100
