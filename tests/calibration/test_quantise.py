"""The whole of quantisation on tiny networks: what is kept, what is refused, and what the images held back say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import calibration.quantise as module
from calibration.graph import Network
from calibration.outcome import EFFORTS, Listener, Options, Quantised, Step
from calibration.placement import target
from calibration.quantise import quantise
from calibration.ranges import Ranges
from calibration.simulate import Images
from runtimes.errors import DataError, GraphError, InputError
from tests.calibration.test_refine import (
    LAYERS,
    contract,
    images,
    network,
    node,
    noise,
    one_thread,
    outputs,
    ranges,
    weights,
)
from tests.exporter.graphs import operators

__all__ = ["one_thread"]  # a fixture that every test here uses

TARGETS = ("tensorrt", "onnxruntime", "openvino")
HELD = np.linspace(0, 39, 8).astype(int)  # one in five of 40, evenly over the list


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


@pytest.fixture(scope="module")
def seen(net: Network) -> Ranges:
    return ranges(net, images())


@pytest.fixture(autouse=True)
def few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning is tested elsewhere; here it may be short."""
    monkeypatch.setattr(module, "_FEWEST_PASSES", 320)
    monkeypatch.setattr(module, "_MOST_PASSES", 320)


def options(goal: str = "openvino", **given: Any) -> Options:
    return Options(target(goal), **given)


def text(done: Quantised) -> bytes:
    return bytes(done.model.SerializeToString(deterministic=True))


def db(net: Network, model: onnx.ModelProto, x: Images) -> float:
    (exact,) = outputs(net.model, x, "logits")
    return float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / noise(net, model, x)))


def drop(net: Network, model: onnx.ModelProto, x: Images) -> float:
    """Percentage points of the images with another largest logit."""
    ((exact,), (rough,)) = outputs(net.model, x, "logits"), outputs(model, x, "logits")
    return 100.0 * float((exact.argmax(axis=1) != rough.argmax(axis=1)).mean())


def damaged(seen: Ranges, *names: str, peak: float = 3000.0) -> Ranges:
    """The same ranges after one image with an outlier: with the method minmax, next to nothing is left of a tensor."""
    rows = dict(seen.tensors)
    for name in names:
        channels = len(rows[name].channel_low)
        other = type(rows[name])()
        other.update(np.full((1, channels, 1), peak, np.float32))
        rows[name] = rows[name].merged(other)
    return replace(seen, tensors=rows)


@pytest.mark.parametrize("goal", TARGETS)
@pytest.mark.parametrize("effort", EFFORTS)
def test_the_same_input_and_seed_give_the_same_bytes(net: Network, seen: Ranges, goal: str, effort: Any) -> None:
    given = options(goal, effort=effort, seed=7)
    torch.manual_seed(1)
    np.random.seed(1)
    one = quantise(net, seen, given, images())
    torch.manual_seed(2)
    np.random.seed(2)
    other = quantise(net, seen, given, images())
    assert text(one) == text(other)
    assert [replace(step, seconds=0) for step in one.steps] == [replace(step, seconds=0) for step in other.steps]
    assert one.sensitivity == other.sensitivity


def test_another_seed_learns_another_file(net: Network, seen: Ranges) -> None:
    gains = []
    for seed in (0, 1):
        done = quantise(net, seen, options(effort="best", seed=seed), images())
        gains += [step.after_db for step in done.steps if step.name == "learned rounding"]
    assert len(set(gains)) == 2


@pytest.mark.parametrize("goal", ["onnxruntime", "openvino"])
def test_refinement_gains_on_images_that_no_step_saw(net: Network, seen: Ranges, goal: str) -> None:
    """Of the typical image: a single one with values that no other has would count for most of the sum."""
    unseen = images(80, seed=99)
    (exact,) = outputs(net.model, unseen, "logits")
    errors = []
    for effort in EFFORTS[:2]:
        done = quantise(net, seen, options(goal, effort=effort), images())
        (rough,) = outputs(done.model, unseen, "logits")
        errors.append(np.square(exact - rough).sum(axis=1))
    fast, balanced = map(np.median, errors)
    assert balanced < fast / 2


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_the_steps_are_measured_one_after_another_on_what_the_file_gives(
    net: Network, seen: Ranges, effort: Any
) -> None:
    done = quantise(net, seen, options(effort=effort), images())
    level = None
    for step in done.steps:
        if step.before_db is None or step.after_db is None:
            continue
        assert level is None or step.before_db == pytest.approx(level)
        assert step.applied == (step.after_db > step.before_db)
        level = step.after_db if step.applied else step.before_db
    names = ["lossless input", "weight scales", "equalisation", "bias correction"]
    assert [step.name for step in done.steps] == [*names, *["learned rounding"] * (effort == "best"), "sensitivity"]
    assert db(net, done.model, images()[HELD]) == pytest.approx(level, abs=0.3)


def _harmful_scales(parameters, _placement):
    return replace(parameters, scales={name: value * 30 for name, value in parameters.scales.items()})


def _harmful_equalisation(network, _observers, _strength):
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    bias = next(item for item in model.graph.initializer if item.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(5), "b1"))
    return Network(model, network.sha256), 8


def _harmful_biases(_simulation, parameters, _images, _progress):
    return replace(parameters, biases={name: value + 3 for name, value in parameters.biases.items()})


def _harmful_learning(_simulation, parameters, _images, _schedule, **_):
    return replace(parameters, weights={name: -value for name, value in parameters.weights.items()})


@pytest.mark.parametrize(
    ("function", "harmful", "harmless", "name"),
    [
        ("with_least_error", _harmful_scales, lambda parameters, _: parameters, "weight scales"),
        ("equalised", _harmful_equalisation, lambda network, *_: (network, 0), "equalisation"),
        ("with_corrected_biases", _harmful_biases, lambda _, parameters, *__: parameters, "bias correction"),
        ("learned", _harmful_learning, lambda _, parameters, *__, **___: parameters, "learned rounding"),
    ],
)
def test_a_step_that_harms_is_measured_and_not_taken(
    net: Network,
    seen: Ranges,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    harmful: Callable[..., Any],
    harmless: Callable[..., Any],
    name: str,
) -> None:
    made = []
    if function == "with_least_error":  # equalisation uses it too
        monkeypatch.setattr(module, "equalised", lambda network, *_: (network, 0))
    for change in (harmful, harmless):
        monkeypatch.setattr(module, function, change)
        effort: Any = "best" if function == "learned" else "balanced"
        made.append(quantise(net, seen, options(effort=effort), images()))
    (step,) = (step for step in made[0].steps if step.name == name)
    assert step.before_db is not None
    assert step.after_db is not None
    assert not step.applied
    assert step.after_db < step.before_db - 2
    assert text(made[0]) == text(made[1])


def test_fast_needs_no_images_and_takes_its_step_on_trust(net: Network, seen: Ranges) -> None:
    done = quantise(net, seen, options(effort="fast"))
    (step,) = (step for step in done.steps if step.name == "weight scales")
    assert (step.before_db, step.after_db, step.applied) == (None, None, True)
    assert done.sensitivity == ()
    assert done.effort == "fast"
    assert db(net, done.model, images(seed=9)) > 15
    assert text(done) == text(quantise(net, seen, options(effort="fast"), images()))  # nor looks at those there are


def test_the_network_is_left_as_it_was(net: Network, seen: Ranges) -> None:
    before = net.model.SerializeToString(deterministic=True)
    quantise(net, seen, options("tensorrt"), images())
    assert net.model.SerializeToString(deterministic=True) == before


def test_a_listener_hears_of_every_step(net: Network, seen: Ranges) -> None:
    class Ear(Listener):
        def __init__(self) -> None:
            self.begun: list[str] = []
            self.ended: list[Step] = []
            self.parts: list[tuple[int, int]] = []

        def started(self, name: str) -> None:
            self.begun.append(name)

        def progress(self, done: int, total: int) -> None:
            self.parts.append((done, total))

        def finished(self, step: Step) -> None:
            self.ended.append(step)

    ear = Ear()
    done = quantise(net, seen, options(max_drop=100.0), images(), ear)
    assert tuple(ear.ended) == done.steps
    assert ear.begun == ["weight scales", "equalisation", "bias correction", "sensitivity", "mixed precision"]
    assert ear.parts == [(count, 4) for count in (1, 2, 3, 4)]


def float_layers(model: onnx.ModelProto) -> set[str]:
    """Layers whose weights no DequantizeLinear makes."""
    made = {name: item.op_type for item in model.graph.node for name in item.output}
    weighted = [item for item in model.graph.node if item.op_type in ("Conv", "Gemm", "MatMul")]
    return {item.name for item in weighted if made.get(item.input[1]) != "DequantizeLinear"}


def test_layers_that_are_named_stay_in_float_and_the_notes_say_so(net: Network, seen: Ranges) -> None:
    done = quantise(net, seen, options(keep=frozenset({"stem", "logits"})), images())
    assert float_layers(done.model) == {"stem", "logits"} == set(done.placement.left)
    assert any(note.startswith("stem stays in float") for note in done.notes)
    assert {row.layer for row in done.sensitivity} == {"conv1", "conv2"}


def test_so_many_of_the_worst_layers_stay_in_float(net: Network, seen: Ranges) -> None:
    rough = damaged(seen, "relu1", "pool")
    given = options(effort="fast", method="minmax", max_drop=100.0)
    plain, done = (quantise(net, rough, replace(given, keep_worst=count), images()) for count in (0, 2))
    worst = [row.layer for row in plain.sensitivity[:2]]
    assert [row.layer for row in done.sensitivity if row.kept] == worst == [row.layer for row in done.sensitivity[:2]]
    assert float_layers(plain.model) == set()
    assert float_layers(done.model) == set(worst)
    assert set(worst) == {"conv2", "logits"}  # the readers of the two tensors
    assert db(net, done.model, images(seed=9)) > db(net, plain.model, images(seed=9)) + 10


def test_a_layer_that_is_not_there_gets_the_nearest_names(net: Network, seen: Ranges) -> None:
    with pytest.raises(InputError, match=r"no layer 'convl'.*conv1") as told:
        quantise(net, seen, options(keep=frozenset({"convl"})), images())
    assert "conv2" in str(told.value)
    with pytest.raises(InputError, match=r"'zzz'.*did you mean conv1, conv2, logits"):
        quantise(net, seen, options(keep=frozenset({"zzz"})), images())


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"keep_worst": -1}, InputError, "-1 layers"),
        ({"keep_worst": 4}, InputError, "4 layers.*at least one"),
        ({"keep_worst": 3, "keep": frozenset({"stem"})}, InputError, "3 layers.*there are 3"),
        ({"keep": frozenset(LAYERS)}, GraphError, "nothing of the model can be quantised"),
        ({"max_drop": -0.5}, InputError, "-0.5"),
        ({"max_drop": float("nan")}, InputError, "nan"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    net: Network, seen: Ranges, given: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        quantise(net, seen, options(**given), images())


def test_layers_stay_in_float_until_no_more_agreement_is_lost_than_allowed(net: Network, seen: Ranges) -> None:
    rough = damaged(seen, "relu1", "pool")
    given = options(effort="fast", method="minmax", max_drop=13.0)
    held = images()  # points of a per cent need all there are
    plain = quantise(net, rough, replace(given, max_drop=100.0), images())
    assert drop(net, plain.model, held) > 13.0
    done = quantise(net, rough, given, images())
    assert drop(net, done.model, held) <= 13.0
    kept = [row.layer for row in done.sensitivity if row.kept]
    assert 0 < len(kept) < 4
    assert kept == [row.layer for row in done.sensitivity[: len(kept)]]
    less = quantise(net, rough, replace(given, max_drop=None, keep=frozenset(kept[:-1])), images())
    assert drop(net, less.model, held) > 13.0  # none too many
    assert f"{len(kept)} of 4 layers stay in float, by agreement" in [step.note for step in done.steps]


def test_with_labels_accuracy_counts_and_not_agreement(net: Network, seen: Ranges) -> None:
    """Labels that the float network gets right are like no labels; where it is wrong, to disagree costs nothing."""
    rough = damaged(seen, "relu1", "pool")
    given = options(effort="fast", method="minmax", max_drop=0.0)
    all_in_8_bits = quantise(net, rough, replace(given, max_drop=100.0), images()).model
    decided, wrong = (outputs(each, images(), "logits")[0].argmax(axis=1) for each in (net.model, all_in_8_bits))
    assert (decided != wrong).any()
    strict, free = (quantise(net, rough, given, images(), labels=labels) for labels in (decided, wrong))
    assert any(row.kept for row in strict.sensitivity)
    assert not any(row.kept for row in free.sensitivity)
    assert {step.note.rpartition(" ")[2] for step in strict.steps if step.name == "mixed precision"} == {"accuracy"}


def test_labels_of_another_numbering_are_told_and_not_taken(net: Network, seen: Ranges) -> None:
    labels = (outputs(net.model, images(), "logits")[0].argmax(axis=1) + 1) % 6
    done = quantise(net, seen, options(effort="fast", max_drop=5.0), images(), labels=labels)
    assert any("the labels are not those of the model" in note and "0.0%" in note for note in done.notes)
    assert any("by agreement" in step.note for step in done.steps)


def test_a_bound_that_cannot_be_met_is_told(net: Network, seen: Ranges) -> None:
    rough = damaged(seen, *seen.tensors, peak=1e7)
    arrays = replace(rough, preprocessing=replace(contract(), color="raw"))  # no lossless input
    done = quantise(net, arrays, options(effort="fast", method="minmax", max_drop=0.0), images())
    assert sum(row.kept for row in done.sensitivity) == 3
    assert any("with all but one layer in float" in note and "0 were allowed" in note for note in done.notes)


def test_a_bound_that_holds_leaves_nothing_in_float(net: Network, seen: Ranges) -> None:
    done = quantise(net, seen, options(max_drop=100.0), images())
    assert float_layers(done.model) == set()
    assert text(done) == text(quantise(net, seen, options(), images()))


def test_ranges_of_another_model_are_refused_with_both_hashes(net: Network, seen: Ranges) -> None:
    with pytest.raises(DataError, match="another model") as told:
        quantise(net, replace(seen, model_sha256="c" * 64), options(), images())
    assert "a" * 64 in str(told.value)
    assert "c" * 64 in str(told.value)


@pytest.mark.parametrize("given", [{}, {"effort": "fast", "keep_worst": 1}, {"effort": "fast", "max_drop": 1.0}])
@pytest.mark.parametrize("count", [None, 0, 9])
def test_too_few_images_are_refused_where_some_are_needed(
    net: Network, seen: Ranges, given: dict[str, Any], count: int | None
) -> None:
    with pytest.raises(DataError, match=f"there are {count or 0} images.*10 at least.*--effort fast"):
        quantise(net, seen, options(**given), None if count is None else images(count))


def test_ten_images_are_enough(net: Network, seen: Ranges) -> None:
    assert quantise(net, seen, options(), images(10)).effort == "balanced"


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (images(channels=1), r"\[40, 1, 8, 8\].*\[N, 3, 8, 8\]"),
        (images()[:, :, :4], r"\[40, 3, 4, 8\]"),
        (images()[:, 0], r"\[40, 8, 8\]"),
        (images().astype(np.float64), "float64"),
        (images() * np.float32("nan"), "NaN"),
    ],
)
def test_images_that_do_not_fit_are_refused(net: Network, seen: Ranges, x: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        quantise(net, seen, options(), x)


@pytest.mark.parametrize("name", ["w1", "fc", "b2", "w0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_as_in_the_file(
    net: Network, seen: Ranges, name: str, value: float
) -> None:
    array = net.initializers[name].copy()
    array.flat[1] = value
    with pytest.raises(DataError, match=f"the weights {name} hold NaN or infinity"):
        quantise(network(**{name: array}), seen, options(effort="fast"))


def floats(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(weights(*shape, seed=seed), name)


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def with_einsum() -> Network:
    mixed = node("Einsum", "relu2 mix", "mixed", equation="nchw,cd->ndhw")
    return network([mixed], [floats("mix", 8, 8, seed=3)], before_head="mixed")


def with_hardswish() -> Network:
    return network([node("HardSwish", "relu2", "swish")], before_head="swish")


def with_transposed() -> Network:
    layer = node("ConvTranspose", "relu2 up", "upsampled", strides=[2, 2])
    return network([layer], [floats("up", 8, 8, 2, 2, seed=3)], before_head="upsampled")


@pytest.mark.parametrize("goal", TARGETS)
@pytest.mark.parametrize(
    ("make", "operator"),
    [(with_einsum, "Einsum"), (with_hardswish, "HardSwish"), (with_transposed, "ConvTranspose")],
)
def test_a_network_that_cannot_be_simulated_is_quantised_where_it_can_be_and_told_of(
    goal: str, make: Callable[[], Network], operator: str
) -> None:
    other = make()
    done = quantise(other, ranges(other, images()), options(goal, effort="best"), images())
    assert done.effort == "fast"
    assert any("effort best was not possible, and fast was taken" in note and operator in note for note in done.notes)
    assert set(done.placement.weights) == set(LAYERS)
    assert float_layers(done.model) == set()
    assert operator in operators(done.model)
    assert done.sensitivity == ()
    assert db(other, done.model, images(seed=9)) > 15


def test_a_layer_without_an_8_bit_form_is_told_of() -> None:
    other = with_transposed()
    done = quantise(other, ranges(other, images()), options(), images())
    assert any(note.startswith("upsampled stays in float: ConvTranspose") for note in done.notes)
    # To name it is no mistake: it does what was asked.
    asked = quantise(other, ranges(other, images()), options(keep=frozenset({"upsampled"})), images())
    assert set(asked.placement.weights) == set(LAYERS)


@pytest.mark.parametrize("given", [{"keep_worst": 1}, {"max_drop": 1.0}])
def test_a_bound_that_cannot_be_watched_is_refused_not_dropped(given: dict[str, Any]) -> None:
    other = with_hardswish()
    with pytest.raises(GraphError, match=r"HardSwish.*--keep-fp NAMES"):
        quantise(other, ranges(other, images()), options(**given), images())


def test_a_model_with_a_fixed_batch_is_refined_all_the_same() -> None:
    fixed = network(dims=(1, 3, 8, 8))
    done = quantise(fixed, ranges(fixed, images()), options(), images())
    assert done.effort == "balanced"
    free = network()
    assert db(fixed, done.model, images(seed=9)) == pytest.approx(
        db(free, quantise(free, ranges(free, images()), options(), images()).model, images(seed=9)), abs=0.2
    )


def test_a_batch_that_is_written_into_a_reshape_leaves_no_refinement_and_is_told_of() -> None:
    head = [
        node("GlobalAveragePool", "relu2", "pool"),
        node("Reshape", "pool rows", "flat"),
        node("Gemm", "flat fc", "logits"),
    ]
    fixed = network(constants=[integers("rows", 1, -1)], head=head, dims=(1, 3, 8, 8))
    done = quantise(fixed, ranges(fixed, images()), options(), images())
    assert done.effort == "fast"
    assert any("batch of 1" in note for note in done.notes)
    assert db(fixed, done.model, images(8, seed=9)) > 15


def test_a_model_with_two_outputs_is_quantised_without_refinement() -> None:
    two = network()
    two.model.graph.output.append(onnx.helper.make_tensor_value_info("pool", onnx.TensorProto.FLOAT, ["N", 8, 1, 1]))
    two = Network(two.model, two.sha256)
    done = quantise(two, ranges(two, images()), options(), images())
    assert any("2 outputs" in note for note in done.notes)
    assert {item.name for item in done.model.graph.output} == {"logits", "pool"}
    assert db(two, done.model, images(seed=9)) > 15
