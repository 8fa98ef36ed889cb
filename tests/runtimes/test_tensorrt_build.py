"""Builds: real ones by TensorRT-RTX, which needs no GPU; for the other generations, every name that is used of them."""

from __future__ import annotations

import os
import re
import signal
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import GraphError, InputError, UnavailableError
from runtimes.reading import read_model
from runtimes.tensorrt import build as module
from runtimes.tensorrt.build import BuildOptions, Built
from runtimes.tensorrt.flavour import Flavour, flavour
from runtimes.tensorrt.generations import generation
from runtimes.tensorrt.monitor import Listener, Monitor
from runtimes.tensorrt.parsing import ParserFault, sentence
from runtimes.tensorrt.precision import carried
from runtimes.tensorrt.profile import Size
from tests.runtimes.trt_fake import VERSIONS, Fake

OLD, TEN = "8.6.1", [version for version in VERSIONS if version.startswith("10.")]
CALIBRATED = ["8.6.1", "10.0.1", "10.3.0", "10.7.0"]
SCALES = {"input": 0.05, "output": 0.1}
TYPED_ONLY = ["11.4.0", "rtx-1.7.1"]


def build(path: Path, *given: Any, **options: Any) -> Built:
    return module.build(*read_model(path, ""), *given, **options)


def saved(folder: Path, kind: str = "fp32", opset: int = 17, operator: str = "Relu", **quantiser: Any) -> Path:
    """A convolution and an activation; its weights, or its Q/DQ, have the precision ``kind``."""
    real = TensorProto.FLOAT16 if kind == "fp16" else TensorProto.FLOAT
    weight = (
        np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float16 if kind == "fp16" else np.float32)
    )
    nodes, stored, data = [], [numpy_helper.from_array(weight, "w")], "input"
    if kind == "int8":
        zero = np.array(quantiser.get("zero", 0), quantiser.get("dtype", np.int8))
        stored += [numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(zero, "z")]
        stored += [numpy_helper.from_array(np.full(16, 0.02, np.float32), "ws")]
        stored += [numpy_helper.from_array(np.zeros(16, np.int8), "wz")]
        stored[0] = numpy_helper.from_array(np.clip(weight * 40, -127, 127).astype(np.int8), "w")
        nodes += [
            helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=0),
        ]
        data = "d"
    nodes += [
        helper.make_node("Conv", [data, "wd" if kind == "int8" else "w"], ["c"], "layer1.0.conv1", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["c"], ["output"], "layer1.0.relu"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", real, ["N", 16, 8, 8])],
        [helper.make_tensor_value_info("output", real, ["N", 16, 8, 8])], stored,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / f"{kind}.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(version: str) -> tuple[Fake, Flavour]:
        fake = Fake(version)
        monkeypatch.setattr(module, "module", lambda _: fake.module)
        row = generation(fake.package, fake.version)
        return fake, Flavour(fake.package, fake.version, row, can_build=True, can_run=True)

    return make


def flags_of(fake: Fake) -> set[str]:
    return {flag.name for (flag,) in fake.names("IBuilderConfig", "set_flag")}


def creation_of(fake: Fake) -> set[str]:
    """Names of the flags in the one argument of ``create_network``."""
    ((bits,),) = fake.names("Builder", "create_network")
    members = fake.facts["NetworkDefinitionCreationFlag"]
    return {name for place, name in enumerate(members) if bits >> place & 1}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_every_name_that_a_plain_build_uses_is_there(version: str, kind: str, tmp_path: Path, faked: Any) -> None:
    fake, own = faked(version)
    built = build(saved(tmp_path, kind), own, BuildOptions(timing_cache=b"", workspace_mib=64))
    kept = None if version.startswith("rtx") else b"kernels"
    assert (built.plan, built.timing_cache, built.precision, built.calibration) == (b"plan", kept, kind, None)
    assert ("input", (1, 16, 8, 8), (1, 16, 8, 8), (8, 16, 8, 8)) in fake.names("IOptimizationProfile", "set_shape")
    assert fake.names("IBuilderConfig", "set_memory_pool_limit")[0][1] == 64 << 20


@pytest.mark.parametrize(
    ("versions", "kind", "asked", "creation", "flags"),
    [
        ([OLD], "fp32", None, {"EXPLICIT_BATCH"}, set()),
        ([OLD], "fp32", "fp16", {"EXPLICIT_BATCH"}, {"FP16"}),
        ([OLD], "int8", None, {"EXPLICIT_BATCH"}, {"INT8", "FP16"}),
        (TEN, "fp32", None, set(), set()),
        (TEN, "fp32", "tf32", set(), {"TF32"}),
        (TEN, "fp32", "bf16", set(), {"BF16"}),
        (TEN, "fp16", None, {"STRONGLY_TYPED"}, set()),
        (TEN, "int8", None, {"STRONGLY_TYPED"}, set()),
        (TYPED_ONLY, "fp32", None, set(), set()),
        (TYPED_ONLY, "fp32", "tf32", set(), {"TF32"}),
        (TYPED_ONLY, "int8", None, set(), set()),
    ],
)
def test_a_precision_is_asked_for_as_the_generation_wants_it(
    versions: list[str], kind: str, asked: Any, creation: set[str], flags: set[str], tmp_path: Path, faked: Any
) -> None:
    for version in versions:
        fake, own = faked(version)
        build(saved(tmp_path, kind), own, BuildOptions(precision=asked))
        assert creation_of(fake) == creation, version
        assert flags_of(fake) == flags, version
        # On from the start: an FP32 engine would compute with ten bits.
        assert bool(fake.names("IBuilderConfig", "clear_flag")) == ("TF32" not in flags)


@pytest.mark.parametrize("version", [OLD, *TEN, "11.4.0"])
def test_portable_engines_and_the_dla_are_asked_for_by_names_that_are_there(
    version: str, tmp_path: Path, faked: Any
) -> None:
    fake, own = faked(version)
    options = BuildOptions(version_compatible=True, hardware="ampere+", refit=True)
    build(saved(tmp_path), own, options)
    assert {"VERSION_COMPATIBLE", "REFIT"} <= flags_of(fake)
    assert fake.names("IBuilderConfig", "hardware_compatibility_level")[0][0].name == "AMPERE_PLUS"
    if own.generation.dla != "absent":
        build(saved(tmp_path), own, BuildOptions(precision=None, dla_core=1))
        assert fake.names("IBuilderConfig", "DLA_core") == [(1,)]
        assert "GPU_FALLBACK" in flags_of(fake)


@pytest.mark.parametrize(
    ("version", "kind", "options", "error", "told"),
    [
        (OLD, "fp32", BuildOptions(compute_capabilities=("8.6",)), InputError, "has no --compute-capability"),
        ("rtx-1.7.1", "fp32", BuildOptions(version_compatible=True), InputError, "has no --version-compatible"),
        ("rtx-1.7.1", "fp32", BuildOptions(dla_core=0), InputError, "has no --dla-core"),
        (OLD, "fp32", BuildOptions(strip=True), InputError, "has no --strip"),
        ("10.3.0", "int8", BuildOptions(refit=True), InputError, "INT8 engine cannot be refitted.*--refit"),
        ("10.3.0", "int8", BuildOptions(dla_core=0, precision="fp16"), InputError, "fp16 was asked for, and scales"),
        (OLD, "int8", BuildOptions(dla_core=0, refit=True), InputError, "INT8 engine cannot be refitted"),
        ("10.16.1.11", "int8", BuildOptions(dla_core=0), InputError, "10.16.1.11 has no --dla-core"),
        ("11.4.0", "int8", BuildOptions(dla_core=0), InputError, "11.4.0 has no --dla-core"),
        ("11.4.0", "fp32", BuildOptions(scales=SCALES), InputError, "no calibrators.*quantize --target tensorrt"),
        ("rtx-1.7.1", "fp32", BuildOptions(scales=SCALES), InputError, "no calibrators.*quantize --target tensorrt"),
        ("10.3.0", "int8", BuildOptions(scales=SCALES), GraphError, "has its own scales: give the FP32 file"),
        (OLD, "fp32", BuildOptions(scales={"a: b": 1.0, **SCALES}, precision="tf32"), InputError, "tf32 was asked for"),
        (
            OLD, "fp32", BuildOptions(dla_core=0, sizes=(Size(1), None, Size(8))), InputError,
            "one fixed shape, and --min 1 and --max 8 were asked for",
        ),
        ("10.3.0", "fp16", BuildOptions(precision="bf16"), GraphError, "file is fp16, and bf16 was asked for"),
        (OLD, "int8", BuildOptions(precision="fp16", refit=True), GraphError, "file is int8, and fp16 was asked for"),
        ("10.3.0", "fp32", BuildOptions(precision="int8"), GraphError, "no Q/DQ.*resnet-export quantize"),
        ("11.4.0", "fp32", BuildOptions(precision="fp16"), GraphError, "from the file.*onnx --precision fp16"),
        (OLD, "fp32", BuildOptions(precision="bf16"), InputError, "has no bf16: it knows FP16, FP8, INT8, TF32"),
        ("rtx-1.7.1", "fp32", BuildOptions(compute_capabilities=("9.9",)), InputError, "9.9: for 7.5, 8.0, 8.6"),
        ("rtx-1.7.1", "fp32", BuildOptions(compute_capabilities=("1.20",)), InputError, "does not build for .* 1.20"),
        ("rtx-1.7.1", "fp32", BuildOptions(compute_capabilities=("8.²",)), InputError, "expected two numbers"),
        ("rtx-1.7.1", "fp32", BuildOptions(compute_capabilities=("86",)), InputError, "'86', expected two numbers"),
        (
            "rtx-1.7.1", "fp32", BuildOptions(precision="tf32", compute_capabilities=("8.6", "7.5")), InputError,
            "tf32 needs compute capability 8.0 at least, and 7.5",
        ),
        (OLD, "fp32", BuildOptions(sizes=(None, Size(9), Size(8))), InputError, "--opt 9x16x8x8 is more than --max"),
    ],
)  # fmt: skip
def test_what_a_generation_does_not_do_is_refused_before_the_build(
    version: str, kind: str, options: BuildOptions, error: type[Exception], told: str, tmp_path: Path, faked: Any
) -> None:
    fake, own = faked(version)
    with pytest.raises(error, match=told):
        build(saved(tmp_path, kind), own, options)
    assert not fake.names("Builder", "build_serialized_network")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_opset_that_is_too_new_is_told_with_the_one_to_take(version: str, tmp_path: Path, faked: Any) -> None:
    _, own = faked(version)
    most = own.generation.highest_opset
    with pytest.raises(GraphError, match=rf"opset {most + 1}, and .* reads {most} at most: .*--opset {most}$"):
        build(saved(tmp_path, opset=most + 1), own, BuildOptions())
    build(saved(tmp_path, opset=most), own, BuildOptions())


def _behind(model: onnx.ModelProto, how: str) -> onnx.ModelProto:
    """The same model with its weights handed on by a node."""
    [weight] = [item for item in model.graph.initializer if item.name == "w"]
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    if how == "Constant":
        node = helper.make_node(
            "Constant", [], ["handed"], value=numpy_helper.from_array(numpy_helper.to_array(weight))
        )
    elif how == "Cast":
        node = helper.make_node("Cast", ["w"], ["handed"], to=TensorProto.FLOAT16)
    else:
        node = helper.make_node(how, ["w"], ["handed"])
    conv.input[1] = "handed"
    model.graph.node.insert(0, node)
    return model


@pytest.mark.parametrize(
    ("kind", "how"), [("fp16", "Constant"), ("fp16", "Identity"), ("fp16", "Transpose"), ("fp32", "Cast")]
)
def test_a_precision_is_seen_behind_what_hands_weights_on(kind: str, how: str, tmp_path: Path) -> None:
    model = onnx.load(saved(tmp_path, kind))
    assert carried(model) == kind
    assert carried(_behind(model, how)) == "fp16"


def test_what_was_refused_before_is_not_why_a_build_fails(tmp_path: Path, faked: Any) -> None:
    fake, own = faked("10.3.0")
    said, answers = fake.module.ILogger.ERROR, iter([False, True])

    def say(text: str) -> None:
        ((logger,),) = fake.names("Builder", "__init__")
        logger.log(said, text)

    def refuse(*_: Any) -> bool:
        say("the timing cache is of device A")
        return next(answers)

    fake.results["IBuilderConfig", "set_timing_cache"] = refuse
    fake.results["Builder", "build_serialized_network"] = lambda *_: say("no implementation for node conv1")
    with pytest.raises(GraphError, match="no implementation for node conv1"):
        build(saved(tmp_path), own, BuildOptions(timing_cache=b"old"))


# ---------------------------------------------------------------- implicit INT8


def cache_of(fake: Fake) -> bytes:
    """What the calibrator of a build gives TensorRT; all that it has must be asked for by the release's names."""
    ((calibrator,),) = fake.names("IBuilderConfig", "int8_calibrator")
    own = {name for name in vars(type(calibrator)) if not name.startswith("__")}
    assert own == set(fake.facts["IInt8EntropyCalibrator2"]) - {"get_algorithm"}
    assert calibrator.get_batch_size() == 1
    assert calibrator.get_batch(["input"]) is None
    calibrator.write_calibration_cache(b"again")
    return bytes(calibrator.read_calibration_cache())


def parsed_by(fake: Fake) -> onnx.ModelProto:
    ((data,),) = fake.names("OnnxParser", "parse")
    return onnx.load_model_from_string(data)


@pytest.mark.parametrize("version", CALIBRATED)
def test_a_dla_gets_a_float_network_and_a_cache_of_the_files_scales(version: str, tmp_path: Path, faked: Any) -> None:
    fake, own = faked(version)
    built = build(saved(tmp_path, "int8"), own, BuildOptions(dla_core=0))
    assert flags_of(fake) == {"INT8", "FP16", "GPU_FALLBACK"}
    assert creation_of(fake) <= {"EXPLICIT_BATCH"}
    assert [node.op_type for node in parsed_by(fake).graph.node] == ["Conv", "Relu"]
    number = own.generation.cache_number(own.version)
    assert cache_of(fake) == f"TRT-{number}-EntropyCalibration2\ninput: 3d4ccccd\n".encode()  # 0.05
    assert built.precision == "int8"
    assert built.calibration is not None
    assert built.calibration.cache == cache_of(fake)
    told = built.calibration.to_json()
    assert told == {"source": "qdq", "tensors": 1, "sha256": sha256(cache_of(fake)).hexdigest()}
    assert any("takes no Q/DQ" in note for note in built.notes)


@pytest.mark.parametrize("version", [*CALIBRATED, "10.16.1.11"])
def test_scales_make_a_float_file_int8(version: str, tmp_path: Path, faked: Any) -> None:
    fake, own = faked(version)
    built = build(saved(tmp_path), own, BuildOptions(scales=SCALES))
    assert flags_of(fake) == {"INT8", "FP16"}
    assert creation_of(fake) <= {"EXPLICIT_BATCH"}
    lines = cache_of(fake).decode().splitlines()[1:]
    assert lines == ["input: 3d4ccccd", "c: 3dcccccd", "output: 3dcccccd"]  # what only the Relu sees has its scale
    assert built.calibration is not None
    assert built.calibration.to_json()["source"] == "ranges"
    assert fake.names("IBuilderConfig", "set_calibration_profile")


def test_without_a_dla_q_dq_stays_explicit(tmp_path: Path, faked: Any) -> None:
    fake, own = faked("10.3.0")
    assert build(saved(tmp_path, "int8"), own, BuildOptions()).calibration is None
    assert not fake.names("IBuilderConfig", "int8_calibrator")


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("sizes", "batch", "told"),
    [
        ((None, None, None), 1, True),
        ((None, Size(4), None), 4, False),
        ((None, None, Size(8)), 8, False),
        ((Size(2), Size(2, 8, 8), Size(2)), 2, False),
    ],
)
def test_a_dla_gets_one_fixed_shape(sizes: Any, batch: int, told: bool, kind: str, tmp_path: Path, faked: Any) -> None:
    fake, own = faked("10.7.0")
    built = build(saved(tmp_path, kind), own, BuildOptions(dla_core=0, sizes=sizes))
    assert fake.names("IOptimizationProfile", "set_shape") == [("input", *[(batch, 16, 8, 8)] * 3)]
    assert built.profile.is_fixed
    assert any("one fixed shape" in note and "--opt" in note for note in built.notes) == told
    assert not fake.names("IBuilderConfig", "set_calibration_profile")


# ---------------------------------------------------------------- caches, targets, interruption


def test_a_timing_cache_is_not_pretended_where_there_is_none(tmp_path: Path, faked: Any) -> None:
    fake, own = faked("rtx-1.7.1")
    built = build(saved(tmp_path), own, BuildOptions(timing_cache=b""))
    assert built.timing_cache is None
    assert any(note.startswith("TensorRT-RTX keeps no timing cache") for note in built.notes)
    assert not fake.names("IBuilderConfig", "create_timing_cache")


def test_a_compute_capability_that_is_given_twice_is_built_for_once(tmp_path: Path, faked: Any) -> None:
    fake, own = faked("rtx-1.7.1")
    built = build(saved(tmp_path), own, BuildOptions(compute_capabilities=("8.9", "8.6", "8.9")))
    assert built.targets == ("8.9", "8.6")
    assert fake.names("IBuilderConfig", "num_compute_capabilities") == [(2,)]
    chosen = fake.names("IBuilderConfig", "set_compute_capability")
    assert [(member.name, place) for member, place in chosen] == [("SM89", 0), ("SM86", 1)]


@pytest.mark.parametrize(("version", "ours"), [(OLD, False), ("10.3.0", True)])
def test_ctrl_c_is_taken_over_only_where_a_monitor_can_end_the_build(
    version: str, ours: bool, tmp_path: Path, faked: Any
) -> None:
    fake, own = faked(version)
    before, seen = signal.getsignal(signal.SIGINT), []

    def interrupted(*_: Any) -> bytes:
        seen.append(signal.getsignal(signal.SIGINT) is not before)
        os.kill(os.getpid(), signal.SIGINT)
        return b"plan"

    fake.results["Builder", "build_serialized_network"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        build(saved(tmp_path), own, BuildOptions())
    assert seen == [ours]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_phase_inside_itself_is_counted_once() -> None:
    own = Monitor(Listener(), threading.Event())
    own.started("a", "b", 4)
    own.started("b", "a", 2)
    own.started("c", "c", 2)
    assert own.step("a", 1)
    assert own.step("c", 0)


def test_phases_may_come_from_several_threads_and_never_go_back() -> None:
    class Heard(Listener):
        def __init__(self) -> None:
            self.fractions: list[float] = []

        def progress(self, fraction: float, phase: str) -> None:
            self.fractions.append(fraction)

    heard = Heard()
    own = Monitor(heard, threading.Event())
    own.started("build", None, 8)

    def work(name: str) -> None:
        own.started(name, "build", 100)
        for step in range(100):
            own.step(name, step)
        own.finished(name)

    threads = [threading.Thread(target=work, args=(f"part {index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard.fractions) == 800
    assert heard.fractions == sorted(heard.fractions)


def test_a_stale_timing_cache_is_started_anew_with_a_note(tmp_path: Path, faked: Any) -> None:
    fake, own = faked("10.3.0")
    answers = iter([False, True])
    fake.results["IBuilderConfig", "set_timing_cache"] = lambda *_: next(answers)
    built = build(saved(tmp_path), own, BuildOptions(timing_cache=b"old"))
    assert fake.names("IBuilderConfig", "create_timing_cache") == [(b"old",), (b"",)]
    assert any("timing cache is of another GPU or TensorRT" in note for note in built.notes)


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("Cuda failure: out of memory", UnavailableError, "ran out of memory.*smaller --max"),
        ("CUDA initialization failure with error: 35 (driver)", UnavailableError, "needs a GPU"),
        ("Could not find any implementation for node layer1.0.conv1", GraphError, "node layer1.0.conv1"),
        ("", GraphError, "does not say why"),
    ],
)
def test_a_build_that_fails_says_what_tensorrt_said(
    said: str, error: type[Exception], told: str, tmp_path: Path, faked: Any
) -> None:
    fake, own = faked("10.3.0")

    def fail(*_: Any) -> None:
        ((logger,),) = fake.names("Builder", "__init__")
        logger.log(fake.module.ILogger.ERROR, said)

    fake.results["Builder", "build_serialized_network"] = fail
    with pytest.raises(error, match=told):
        build(saved(tmp_path), own, BuildOptions())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            ParserFault(
                'creator && "Plugin not found, are the plugin name, version, and namespace correct?"', "r", "Foo"
            ),
            "TensorRT cannot take Foo r: Plugin not found.*TensorRT has no such operator",
        ),
        (
            ParserFault("Assertion failed: model->ParseFromCodedStream(&c): Failed to parse the ONNX model.", "", ""),
            "TensorRT cannot take the model: Failed to parse the ONNX model; the file is damaged",
        ),
        (
            ParserFault("TensorRT only supports symmetric quantization, asymmetric given", "q", "QuantizeLinear"),
            "QuantizeLinear q: .*--target tensorrt",
        ),
        (ParserFault("input is asymmetrically padded", "p", "MaxPool"), "MaxPool p: input is asymmetrically padded$"),
        (ParserFault("unsupported opset 26", "", ""), "lower --opset$"),
    ],
)
def test_the_parser_is_translated(fault: ParserFault, told: str) -> None:
    line = sentence([fault, fault])
    assert "(and 1 more)" in line
    assert "\n" not in line
    assert re.search(told, line.replace(" (and 1 more)", "")), line


# ---------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    return flavour("tensorrt_rtx")


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("targets", [("8.6",), ("8.6", "8.9")])
def test_an_engine_is_built_without_a_gpu(kind: str, targets: tuple[str, ...], tmp_path: Path, rtx: Flavour) -> None:
    class Heard(Listener):
        def __init__(self) -> None:
            self.fractions: list[float] = []

        def progress(self, fraction: float, phase: str) -> None:
            self.fractions.append(fraction)

    heard = Heard()
    options = BuildOptions(compute_capabilities=targets)
    built = build(saved(tmp_path, kind), rtx, options, listener=heard)
    assert (built.precision, built.targets) == (kind, targets)
    assert len(built.plan) > 1000
    assert heard.fractions == sorted(heard.fractions)
    assert heard.fractions[-1] > 0.8  # TensorRT does not tell of the last step


def test_an_interrupted_build_ends_and_the_next_one_is_whole(tmp_path: Path, rtx: Flavour) -> None:
    class Pressed(Listener):
        times = 0

        def progress(self, fraction: float, phase: str) -> None:
            if not self.times:
                os.kill(os.getpid(), signal.SIGINT)
            self.times += 1

    options = BuildOptions(compute_capabilities=("8.6",))
    with pytest.raises(KeyboardInterrupt):
        build(saved(tmp_path), rtx, options, listener=Pressed())
    assert build(saved(tmp_path), rtx, options).plan


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ({"kind": "int8", "zero": 128, "dtype": np.uint8}, "QuantizeLinear|DequantizeLinear.*--target tensorrt"),
        ({"operator": "Hardmax2"}, "Hardmax2 layer1.0.relu: .*no such operator"),
    ],
)
def test_what_the_real_parser_refuses_is_named(file: dict[str, Any], told: str, tmp_path: Path, rtx: Flavour) -> None:
    with pytest.raises(GraphError, match=told) as caught:
        build(saved(tmp_path, **file), rtx, BuildOptions(compute_capabilities=("8.6",)))
    assert "\n" not in str(caught.value)
