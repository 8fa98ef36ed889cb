"""Observing a network: statistics are those of its activations, however the images are cut into batches.

Weights and images are small integers, so that every sum is exact in float32 and equality is equality on any machine.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from calibration.collect import Collector, batch_size, collect, observable, tool_versions
from calibration.graph import Network
from calibration.histogram import BINS
from calibration.observers import Observer
from exporter.graph.export import export
from runtimes.errors import DataError, GraphError, InputError, UnavailableError
from tests.exporter.graphs import bottleneck, folded, onnx_model
from tests.exporter.graphs import images as float_images

OBSERVED = ("input", "relu1", "conv2", "relu2", "pool")
WEIGHTS = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "fc": (4, 5)}
PADDED = {"pads": [1, 1, 1, 1]}
BUDGET = 96 << 20


def node(operator, sources, name, **attributes):
    return helper.make_node(operator, sources.split(" "), [name], **attributes)


def whole(shape, seed=0, reach=2):
    return np.random.default_rng(seed).integers(-reach, reach + 1, shape).astype(np.float32)


def images(count=6, side=8):
    return whole((count, 3, side, side), seed=9)


def network(dims=("N", 3, 8, 8), **changed):
    """A block with an identity shortcut behind a pooled stem; ``changed`` replaces weights."""
    values = {name: whole(shape, seed, 1) for seed, (name, shape) in enumerate(WEIGHTS.items())} | changed
    nodes = [
        node("Conv", "input w1 b1", "conv1", **PADDED),
        node("Relu", "conv1", "relu1"),
        node("MaxPool", "relu1", "maxpool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "maxpool w2 b2", "conv2", **PADDED),
        node("Add", "conv2 maxpool", "add"),
        node("Relu", "add", "relu2"),
        node("GlobalAveragePool", "relu2", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc", "logits"),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    return Network(onnx_model(nodes, constants, dims=dims), "0" * 64)


def collector(of=None, **options):
    return Collector(of or network(), threads=1, **options)


def rows(of):
    """The statistics of a collector as text, in which 0.0 and -0.0 differ too."""
    return json.dumps({name: observer.to_json() for name, observer in of.observers.items()})


def collected(*parts, **options):
    found = collector(**options)
    assert collect(found, parts) == sum(map(len, parts))
    return found


def activations(of, batch):
    """The observed tensors, by the reference implementation of the operators."""
    model = onnx.ModelProto.FromString(of.model.SerializeToString())
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in OBSERVED[1:])
    found = ReferenceEvaluator(model).run(list(OBSERVED[1:]), {"input": batch})
    return dict(zip(OBSERVED, [batch, *found], strict=True))


def test_statistics_are_those_of_activations_computed_by_other_code():
    found = collected(images()[:4], images()[4:])
    expected = activations(network(), images())
    assert tuple(found.observers) == OBSERVED
    for name, values in expected.items():
        observer, axes = found.observers[name], (0, 2, 3)
        assert observer.images == 6
        assert (observer.low, observer.high) == (values.min(), values.max())
        np.testing.assert_array_equal(observer.channel_low, values.min(axis=axes))
        np.testing.assert_array_equal(observer.channel_high, values.max(axis=axes))
        assert observer.mean_low == pytest.approx(values.min(axis=(1, 2, 3)).mean(dtype=np.float64), rel=1e-12)
        assert observer.mean_high == pytest.approx(values.max(axis=(1, 2, 3)).mean(dtype=np.float64), rel=1e-12)
        edges = np.arange(-BINS, BINS + 1) * 2.0**observer.histogram.exponent
        np.testing.assert_array_equal(observer.histogram.counts, np.histogram(values[values != 0], edges)[0])
        assert observer.histogram.zeros == (values == 0).sum()


def test_statistics_of_an_exported_network_are_those_that_hooks_see_in_the_module():
    module = bottleneck()
    seen = [float_images(5).numpy()]
    for name, part in module.named_modules():
        if isinstance(part, nn.ReLU | nn.AdaptiveAvgPool2d) or name.endswith((".bn3", ".downsample.1")):
            # copies: what follows works in place
            part.register_forward_hook(lambda part, sources, output: seen.append(output.clone().numpy()))
    with torch.no_grad():
        module(float_images(5))
    graph = Network(export(folded(bottleneck()).captured, 17, "torchscript"), "0" * 64)
    found = collected(*np.split(seen[0], [2, 4]), of=graph)
    assert len(found.observers) == len(seen) == 13
    for observer, values in zip(found.observers.values(), seen, strict=True):
        near = {"rtol": 0, "atol": 1e-5 * np.abs(values).max()}
        np.testing.assert_allclose(observer.channel_low, values.min(axis=(0, 2, 3)), **near)
        np.testing.assert_allclose(observer.channel_high, values.max(axis=(0, 2, 3)), **near)
        assert observer.histogram.total == values.size


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 5], [1], [4]], ids=str)
def test_statistics_do_not_depend_on_how_images_are_cut_into_batches(cuts):
    assert rows(collected(*np.split(images(), cuts))) == rows(collected(*np.split(images(), [2, 5])))


def test_statistics_do_not_depend_on_the_order_of_images():
    assert rows(collected(images()[::-1])) == rows(collected(images()))


def test_images_of_any_size_are_observed_where_it_is_free():
    found = collected(images(side=8), images(side=6), of=network(dims=("N", 3, "H", "W")))
    assert found.observers["input"].histogram.total == 6 * 3 * (8 * 8 + 6 * 6)


def poisoned(name, value):
    weights = whole(WEIGHTS[name], 5, 1)
    weights.flat[0] = value
    return network(**{name: weights})


@pytest.mark.parametrize(
    ("weight", "value", "tensor", "kind"),
    [
        ("w1", np.nan, "relu1", "NaN"),
        ("w2", np.nan, "conv2", "NaN"),
        ("b1", np.inf, "relu1", "infinite"),
        ("b2", np.inf, "conv2", "infinite"),
        ("b2", -np.inf, "conv2", "infinite"),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named_and_nothing_is_taken_in(weight, value, tensor, kind):
    found = collector(poisoned(weight, value))
    with pytest.raises(DataError, match=f"the tensor {tensor} is {kind}"):
        found.update(images())
    assert rows(found) == rows(collector())


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_one_bad_pixel_after_good_batches_leaves_their_statistics_as_they_were(value, kind):
    found = collected(images())
    before, bad = rows(found), images()
    bad[3, 1, 2, 5] = value
    with pytest.raises(DataError, match=f"the tensor input is {kind}"):
        found.update(bad)
    assert rows(found) == before


def test_finite_values_are_taken_in_even_where_their_sum_is_not_finite():
    still = network(w1=np.zeros(WEIGHTS["w1"], np.float32))
    batch = np.full((2, 3, 8, 8), 3e38, np.float32)
    batch[1] = -3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collected(batch, of=still)
    assert (found.observers["input"].low, found.observers["input"].high) == (batch.min(), batch.max())


@pytest.mark.parametrize(
    ("batch", "received"),
    [
        (np.zeros((2, 4, 8, 8), np.float32), r"float32 \[2, 4, 8, 8\]"),
        (np.zeros((2, 3, 8, 9), np.float32), r"float32 \[2, 3, 8, 9\]"),
        (np.zeros((3, 8, 8), np.float32), r"float32 \[3, 8, 8\]"),
        (np.zeros((0, 3, 8, 8), np.float32), r"float32 \[0, 3, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.float64), r"float64 \[2, 3, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"uint8 \[2, 3, 8, 8\]"),
    ],
    ids=["channels", "width", "rank", "empty", "double", "pixels"],
)
def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing(batch, received):
    found = collected(images())
    before = rows(found)
    with pytest.raises(DataError, match=received + r": the model takes float32 \[any, 3, 8, 8\]"):
        found.update(batch)
    assert rows(found) == before


def test_what_onnx_runtime_refuses_is_one_line_and_silent(capfd):
    nodes = [node("Flatten", "input", "flat"), node("Gemm", "flat fc", "logits")]
    weight = numpy_helper.from_array(whole((3 * 8 * 8, 5)), "fc")
    found = collector(Network(onnx_model(nodes, [weight], dims=("N", 3, "H", "W")), "0" * 64))
    found.update(images())
    with pytest.raises(DataError, match=r"failed on a batch \[6, 3, 9, 9\]") as caught:
        found.update(images(side=9))
    assert "\n" not in str(caught.value)
    assert found.observers["input"].images == 6
    assert capfd.readouterr().err == ""


def test_a_tensor_without_values_for_each_image_is_refused_before_any_is_taken_in():
    mixed = [node("Conv", "input w", "conv"), node("ReduceMax", "conv", "largest", keepdims=0)]
    weight = numpy_helper.from_array(whole((4, 3, 1, 1)), "w")
    found = collector(Network(onnx_model([*mixed, node("Neg", "largest", "logits")], [weight], rank=0), "0" * 64))
    before = rows(found)
    with pytest.raises(DataError, match=r"the tensor largest has the shape \[\] for a batch of 6"):
        found.update(images())
    assert rows(found) == before


def test_a_short_last_batch_of_a_fixed_batch_counts_only_its_own_images():
    fixed = network(dims=(4, 3, 8, 8))
    assert rows(collected(images()[:4], images()[4:], of=fixed)) == rows(collected(images()))
    with pytest.raises(DataError, match=r"the model takes float32 \[4, 3, 8, 8\]"):
        collector(fixed).update(images(5))


def test_going_on_from_saved_statistics_equals_one_pass():
    first = collected(images()[:2])
    read = {name: Observer.from_json(json.loads(json.dumps(o.to_json()))) for name, o in first.observers.items()}
    assert rows(collected(images()[2:], observers=read)) == rows(collected(images()))


def test_the_statistics_gone_on_from_belong_to_the_caller():
    first = collected(images()[:2])
    before = rows(first)
    collected(images()[2:], observers=first.observers)
    assert rows(first) == before


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_statistics_to_go_on_from_are_a_new_start(nothing):
    assert rows(collector(observers=nothing)) == rows(collector())


def test_statistics_of_other_tensors_are_refused():
    others = dict.fromkeys([*OBSERVED[:-1], "another"], Observer())
    with pytest.raises(DataError, match="of other tensors"):
        collector(observers=others)
    with pytest.raises(DataError, match="of other tensors"):
        collector(observers={"input": Observer()})


def test_statistics_of_another_width_are_refused_before_any_is_taken_in():
    start = collected(images()).observers
    start["relu2"] = Observer()
    start["relu2"].update(np.ones((1, 7, 2, 2), np.float32))
    found = collector(observers=start)
    before = rows(found)
    with pytest.raises(DataError, match="relu2 has 4 channels, the statistics to go on from have 7"):
        found.update(images())
    assert rows(found) == before


def test_an_unknown_provider_is_refused_and_the_present_ones_are_named():
    with pytest.raises(UnavailableError, match=r"ImaginaryExecutionProvider is not available: .*CPUExecutionProvider"):
        collector(providers=["ImaginaryExecutionProvider", "CPUExecutionProvider"])


def test_a_provider_that_is_dropped_while_loading_is_not_replaced_silently(monkeypatch):
    listed, real = ["CUDAExecutionProvider", "CPUExecutionProvider"], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, **_: real(source, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider is not available: the session started with CPU"):
        collector(providers=listed)


def test_a_network_without_a_tensor_to_observe_is_refused():
    with pytest.raises(GraphError, match="no tensor to observe"):
        collector(Network(onnx_model([node("Relu", "input", "logits")]), "0" * 64))


def test_a_model_that_onnx_runtime_cannot_load_is_a_graph_error():
    broken = network()
    broken.model.graph.node[6].op_type = "GlobalMagicPool"
    with pytest.raises(GraphError, match="GlobalMagicPool"):
        collector(broken)


def test_observing_leaves_the_model_as_it_was_and_gives_each_tensor_once():
    found = network()
    before = found.model.SerializeToString(deterministic=True)
    outputs = [item.name for item in observable(found).graph.output]
    assert outputs == ["logits", *OBSERVED]
    assert found.model.SerializeToString(deterministic=True) == before


def test_an_output_that_lends_its_range_is_given_once():
    nodes = [node("Conv", "input w", "logits"), node("Identity", "logits", "copy"), node("Neg", "copy", "unused")]
    weight = numpy_helper.from_array(whole((4, 3, 1, 1)), "w")
    found = Network(onnx_model(nodes, [weight], rank=4), "0" * 64)
    assert [item.name for item in observable(found).graph.output] == ["logits", "input", "unused"]
    assert collected(images(), of=found).observers["logits"].images == 6


def test_progress_hears_of_the_images_done_so_far():
    heard: list[int] = []
    assert collect(collector(), np.split(images(), [2, 5]), heard.append) == 6
    assert heard == [2, 5, 6]
    assert collect(collector(), [], heard.append) == 0
    assert heard == [2, 5, 6]


def test_a_fixed_batch_is_the_batch():
    assert batch_size(network(dims=(5, 3, 8, 8)), 8, 8) == 5
    assert batch_size(network(dims=(5, 3, "H", "W")), 4096, 4096) == 5


@pytest.mark.parametrize("side", [8, 256, 512, 4096])
def test_the_activations_of_one_batch_fit_into_the_budget_and_one_more_image_would_not(side):
    # input [3,S,S], relu1 [4,S,S], conv2 and relu2 [4,S/2,S/2] each, pool [4,1,1]
    each = 4 * (3 * side**2 + 4 * side**2 + 2 * 4 * (side // 2) ** 2 + 4)
    batch = batch_size(network(dims=("N", 3, "H", "W")), side, side)
    assert batch * each <= BUDGET or batch == 1
    assert (batch + 1) * each > BUDGET or batch == 64
    assert (batch == 64, batch == 1) == (side == 8, side == 4096)


def test_sizes_that_a_file_claims_inside_do_not_change_the_batch():
    found = network(dims=("N", 3, "H", "W"))
    expected = batch_size(found, 256, 256)
    found.model.graph.value_info.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4, 2, 2)) for name in OBSERVED[1:-1]
    )
    assert batch_size(found, 256, 256) == expected


@pytest.mark.parametrize(
    ("dims", "expected"),
    [(("N", 3, 8, 8), "8x8"), (("N", 3, 8, "W"), "8xany"), ((2, 3, 8, 8), "8x8"), (("N", 3, "H", 9), "anyx9")],
)
def test_images_of_another_size_than_the_models_are_refused(dims, expected):
    with pytest.raises(InputError, match=f"images are 16x8, the model takes {expected}"):
        batch_size(network(dims=dims), 16, 8)


def test_tool_versions_are_those_of_the_modules_that_compute():
    assert tool_versions() == {
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def test_tool_versions_do_not_ask_under_which_name_onnxruntime_was_installed(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    assert tool_versions()["onnxruntime"] == onnxruntime.__version__
