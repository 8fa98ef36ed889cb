"""Refinement, judged by ONNX Runtime running the files that its parameters make, node by node where need be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from calibration import refine
from calibration.collect import Collector, collect
from calibration.graph import Network
from calibration.grids import Affine
from calibration.parameters import Parameters, initial
from calibration.placement import Placement, place, target
from calibration.preprocess import PRESETS, Preprocessing
from calibration.qdq import write
from calibration.ranges import Ranges
from calibration.refine import Schedule, learned, with_corrected_biases, with_least_error
from calibration.simulate import Images, Simulation
from tests.exporter.graphs import onnx_model

SIDE, CLASSES = 8, 6
LAYERS = ("stem", "conv1", "conv2", "logits")
PADDED = {"pads": [1, 1, 1, 1]}


def node(operator, sources, *names, **attributes):
    return helper.make_node(operator, sources.split(" "), list(names), **attributes)


def weights(*shape: int, seed: int) -> np.ndarray:
    """Normal values, of a size that keeps the size of activations."""
    values = np.random.default_rng(seed).standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return np.asarray(values * 1.5, np.float32)


def network(
    middle: Sequence[onnx.NodeProto] = (),
    constants: Sequence[onnx.TensorProto] = (),
    *,
    before_head: str = "relu2",
    dims: Sequence[int | str] = ("N", 3, SIDE, SIDE),
    blocks: int = 1,
    head: Sequence[onnx.NodeProto] = (),
    **changed: np.ndarray,
) -> Network:
    """A residual network of tiny layers; ``middle`` goes between its last block and its head."""
    values = {
        "w0": weights(8, int(dims[1]), 3, 3, seed=0),
        "b0": weights(8, seed=1),
        "fc": weights(8, CLASSES, seed=4) * 3,
    }
    nodes = [node("Conv", "input w0 b0", "stem", **PADDED), node("Relu", "stem", "relu")]
    last = "relu"
    for block in range(1, blocks + 1):
        first, second, end = 2 * block - 1, 2 * block, f"relu{2 * block}"
        for each in (first, second):
            values |= {f"w{each}": weights(8, 8, 3, 3, seed=10 + each), f"b{each}": weights(8, seed=50 + each)}
        nodes += [
            node("Conv", f"{last} w{first} b{first}", f"conv{first}", **PADDED),
            node("Relu", f"conv{first}", f"relu{first}"),
            node("Conv", f"relu{first} w{second} b{second}", f"conv{second}", **PADDED),
            node("Add", f"conv{second} {last}", f"add{second}"),
            node("Relu", f"add{second}", end),
        ]
        last = end
    if not head:
        head = [
            node("GlobalAveragePool", before_head if middle else last, "pool"),
            node("Flatten", "pool", "flat"),
            node("Gemm", "flat fc", "logits"),
        ]
    stored = [numpy_helper.from_array(value, name) for name, value in (values | changed).items()]
    return Network(onnx_model([*nodes, *middle, *head], [*stored, *constants], dims=dims), "a" * 64)


def contract(channels: int = 3) -> Preprocessing:
    return PRESETS["cifar"].for_input(channels, SIDE, SIDE)


def images(count: int = 40, seed: int = 0, channels: int = 3) -> Images:
    """Preprocessed pixels; each image has colours of its own, so that the logits differ between images."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, channels, 1, 1))
    pixels = np.clip(colours + random.integers(-60, 61, (count, channels, SIDE, SIDE)), 0, 255)
    told = contract(channels)
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (told.mean, told.std))
    return np.asarray((pixels * told.scale - mean) / std, np.float32)


def ranges(net: Network, seen: Images, preprocessing: Preprocessing | None = None) -> Ranges:
    collector = Collector(net, threads=1)
    step = 1 if isinstance(net.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None, int) else len(seen)
    collect(collector, (seen[i : i + step] for i in range(0, len(seen), step)))
    return Ranges(net.sha256, preprocessing or contract(), len(seen), "b" * 64, collector.observers, {})


def outputs(model: onnx.ModelProto, x: Images, *names: str) -> list[np.ndarray]:
    """Tensors of a model as ONNX Runtime computes them, without fusions."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {item.name for item in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fixed = session.get_inputs()[0].shape[0]
    step = fixed if isinstance(fixed, int) else len(x)
    parts = [session.run(list(names), {"input": x[i : i + step]}) for i in range(0, len(x), step)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def noise(net: Network, model: onnx.ModelProto, x: Images) -> float:
    """Squared error of the logits."""
    ((exact,), (rough,)) = outputs(net.model, x, "logits"), outputs(model, x, "logits")
    return float(np.square(exact.astype(np.float64) - rough).sum())


def start(net: Network, x: Images, *, goal: str = "openvino", **options) -> tuple[Placement, Parameters]:
    placement = place(net, target(goal, **options))
    return placement, initial(net, placement, ranges(net, x).tensors, "mse", {})


def arrays(parameters: Parameters) -> dict[str, np.ndarray]:
    """Every number, by a name of its own."""
    groups = {"weight": parameters.weights, "scale": parameters.scales, "bias": parameters.biases}
    found = {f"{kind} {name}": np.array(value) for kind, group in groups.items() for name, value in group.items()}
    return found | {f"step {name}": np.array(each.scale) for name, each in parameters.activations.items()}


def equal(one: Parameters, other: Parameters) -> bool:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


def coarse(parameters: Parameters, *names: str, factor: float = 12.0) -> Parameters:
    """The same with far too few steps in some weights."""
    scales = {name: value * np.float32(factor if name in names else 1) for name, value in parameters.scales.items()}
    return replace(parameters, scales=scales)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


def shift(net: Network, model: onnx.ModelProto, x: Images, layer: str) -> np.ndarray:
    """Mean error of every output channel of a layer, with its predecessors quantised."""
    ((exact,), (rough,)) = outputs(net.model, x, layer), outputs(model, x, layer)
    error = exact.astype(np.float64) - rough
    return np.asarray(error.mean(axis=tuple(axis for axis in range(error.ndim) if axis != 1)))


def test_bias_correction_takes_the_mean_error_of_every_channel_away_with_quantised_predecessors(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x)
    parameters = coarse(parameters, "w0", "w1", "w2", "fc", factor=6.0)
    corrected = with_corrected_biases(Simulation(net, placement), parameters, x)
    before, after = (write(net, placement, each) for each in (parameters, corrected))
    for layer in LAYERS:
        was, now = (np.abs(shift(net, model, x, layer)) for model in (before, after))
        assert was.max() > 1e-2, layer
        assert now.max() < 1e-3 * was.max(), layer
    assert noise(net, after, x) < 0.5 * noise(net, before, x)


def test_bias_correction_changes_biases_only_and_not_its_argument(net: Network) -> None:
    x = images(8)
    placement, parameters = start(net, x)
    before = {name: value.copy() for name, value in arrays(parameters).items()}
    corrected = arrays(with_corrected_biases(Simulation(net, placement), parameters, x))
    for name, value in arrays(parameters).items():
        assert np.array_equal(value, before[name])
        assert np.array_equal(corrected[name], before[name]) == (not name.startswith("bias"))


def test_a_matmul_has_no_bias_to_correct() -> None:
    head = [
        node("GlobalAveragePool", "relu2", "pool"),
        node("Flatten", "pool", "flat"),
        node("MatMul", "flat fc", "logits"),
    ]
    plain = network(head=head)
    x = images(8)
    placement, parameters = start(plain, x)
    heard: list[tuple[int, int]] = []
    corrected = with_corrected_biases(
        Simulation(plain, placement), parameters, x, lambda done, total: heard.append((done, total))
    )
    assert not corrected.biases["logits"].any()
    assert corrected.biases["conv2"].any()
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_least_error_scales_lower_the_squared_error_of_every_channel(net: Network) -> None:
    placement, parameters = start(net, images(8), goal="tensorrt", folds="none")
    parameters = coarse(parameters, "w1", factor=3.0)
    better = with_least_error(parameters, placement)
    total = np.zeros(2)
    for each in placement.weights.values():
        real = np.moveaxis(parameters.weights[each.name].astype(np.float64), each.axis, 0)
        real = real.reshape(len(real), -1)
        errors = []
        for scales in (parameters.scales[each.name], better.scales[each.name]):
            steps = np.clip(np.rint(real / scales[:, None]), -127, 127)
            errors.append(np.square(steps * scales[:, None] - real).sum(axis=1))
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        total += [each_error.sum() for each_error in errors]
    assert total[1] < 0.99 * total[0]
    assert better.weights is parameters.weights


SCHEDULE = Schedule(20, 16)


@pytest.mark.parametrize("goal", ["tensorrt", "onnxruntime", "openvino"])
def test_learning_lowers_the_error_of_the_file_on_its_images(net: Network, goal: str) -> None:
    x = images(24)
    placement, parameters = start(net, x, goal=goal)
    better = learned(Simulation(net, placement), parameters, x, Schedule(80, 16))
    before, after = (noise(net, write(net, placement, each), x) for each in (parameters, better))
    assert after < 0.85 * before


def test_learning_gives_the_same_numbers_for_the_same_seed_and_others_for_another(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x)
    simulation = Simulation(net, placement)
    torch.manual_seed(1)
    one = learned(simulation, parameters, x, SCHEDULE, seed=3)
    torch.manual_seed(2)
    assert equal(one, learned(simulation, parameters, x, SCHEDULE, seed=3))
    other = arrays(learned(simulation, parameters, x, SCHEDULE, seed=4))
    assert all(not np.array_equal(value, other[name]) for name, value in arrays(one).items())


def test_learning_leaves_its_argument_and_its_images_as_they_were(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x)
    before, pixels = {name: value.copy() for name, value in arrays(parameters).items()}, x.copy()
    learned(Simulation(net, placement), parameters, x, SCHEDULE)
    assert all(np.array_equal(value, before[name]) for name, value in arrays(parameters).items())
    assert np.array_equal(x, pixels)


def test_learning_never_changes_a_fixed_source_and_changes_every_other(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x, goal="onnxruntime")
    better = learned(Simulation(net, placement), parameters, x, SCHEDULE, fixed=frozenset({"relu1", "input"}))
    for name, was in parameters.activations.items():
        now: Affine = better.activations[name]
        same = placement.sites[name].source in {"relu1", "input"}
        assert (now == was) == same, name
        assert (now.zero_point, now.grid) == (was.zero_point, was.grid)
        assert now.scale == float(np.float32(now.scale)) > 0


def test_sites_of_one_source_keep_one_scale(net: Network) -> None:
    """A pool or a reshape moves integers: with two scales there would be a second rounding."""
    x = images(24)
    placement, parameters = start(net, x, goal="onnxruntime")
    better = learned(Simulation(net, placement), parameters, x, SCHEDULE)
    sources: dict[str, set[float]] = {}
    for name, site in placement.sites.items():
        sources.setdefault(site.source, set()).add(better.activations[name].scale)
    assert len(placement.sites) > len(sources)
    assert all(len(scales) == 1 for scales in sources.values())


def test_learned_weights_are_what_the_file_rounds_and_some_round_otherwise_than_before(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x, goal="tensorrt", folds="none")
    better = learned(Simulation(net, placement), parameters, x, Schedule(80, 16))
    stored = {item.name: numpy_helper.to_array(item) for item in write(net, placement, better).graph.initializer}
    moved = 0
    for each in placement.weights.values():
        shape = [1] * better.weights[each.name].ndim
        shape[each.axis] = -1
        steps, was = (
            np.clip(np.rint(which.weights[each.name] / which.scales[each.name].reshape(shape)), -127, 127)
            for which in (better, parameters)
        )
        assert np.array_equal(stored[f"{each.name}.quantized"], steps)
        assert np.array_equal(better.integers(each.name, each.axis, placement.target), steps)
        far = np.abs(better.weights[each.name] - parameters.weights[each.name]) / parameters.scales[each.name].reshape(
            shape
        )
        assert far.max() < 3  # steps of the grid: rounding, not training anew
        moved += int(np.count_nonzero(steps != was))
    assert moved > 20


def test_learning_tells_of_every_step(net: Network) -> None:
    x = images(4)
    placement, parameters = start(net, x)
    heard: list[tuple[int, int]] = []
    learned(
        Simulation(net, placement), parameters, x, Schedule(3, 4),
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_a_batch_larger_than_the_images_is_all_of_them(net: Network) -> None:
    x = images(5)
    placement, parameters = start(net, x)
    better = learned(Simulation(net, placement), parameters, x, Schedule(4, 16))
    assert all(np.isfinite(value).all() for value in arrays(better).values())
    assert not equal(better, parameters)


def test_learning_sees_images_shifted_by_a_sixteenth_at_most_and_every_other_time_mirrored() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    picture = torch.stack([rows, columns])[None]  # a pixel's value is where it was
    generator = torch.Generator().manual_seed(0)
    offsets = set()
    for step in range(60):
        moved = refine._varied(picture, step, generator)
        assert moved.shape == picture.shape
        if step % 2:
            moved = torch.stack([moved[0, 0], 47 - moved[0, 1]])[None]
        inside = moved[0, :, 4:-4, 4:-4] - picture[0, :, 4:-4, 4:-4]  # away from what is reflected
        assert all(len(torch.unique(part)) == 1 for part in inside)
        offsets.add((int(inside[0, 0, 0]), int(inside[1, 0, 0])))
    down, across = zip(*offsets, strict=True)
    assert (min(down), max(down), min(across), max(across)) == (-2, 2, -3, 3)


def test_of_the_looks_the_judge_takes_the_best(net: Network) -> None:
    x = images(24)
    placement, parameters = start(net, x)
    seen: list[Parameters] = []

    def judge(found: Parameters) -> float:
        seen.append(found)
        return {3: 2.0}.get(len(seen), 1.0)

    best = learned(Simulation(net, placement), parameters, x, Schedule(16, 8), judge=judge)
    assert len(seen) == 8  # four looks, at the parameters and at their running mean
    assert equal(best, seen[2])
    assert not any(equal(one, other) for one, other in itertools.combinations(seen, 2))
