"""The `tensorrt` files are built by a real TensorRT: TensorRT-RTX, which needs no GPU to build for one."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from calibration.lattice import PIXELS, on_lattice
from calibration.parameters import initial
from calibration.placement import Folding, place, target
from calibration.preprocess import PRESETS
from calibration.qdq import write
from tests.calibration.networks import SIZE, basic, bottleneck, downsample, images, observers_of, option_a

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")


class _Quiet(tensorrt_rtx.ILogger):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        tensorrt_rtx.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= tensorrt_rtx.ILogger.ERROR:
            self.lines.append(message)


def _engine_size(model: onnx.ModelProto, capability: str) -> int:
    logger = _Quiet()
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), logger.lines
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    rest = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *rest), (4, *rest), (4, *rest))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(tensorrt_rtx.ComputeCapability, capability), 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.lines
    return int(engine.nbytes)


@pytest.mark.parametrize("capability", ["SM86", "SM89"])
@pytest.mark.parametrize("folds", ["all", "free", "none"])
@pytest.mark.parametrize("build", [basic, bottleneck, downsample, option_a])
def test_the_tensorrt_file_becomes_an_engine(build: Any, folds: Folding, capability: str) -> None:
    network, batch = build().network(), images()
    goal = target("tensorrt", folds=folds)
    contract = PRESETS["cifar"].with_overrides(size=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.1,) * 3)
    found = on_lattice(network, contract, goal, observers_of(network, batch)["input"])
    placement = place(found.network, goal)
    fixed = {} if found.quantisation is None else {PIXELS: found.quantisation}
    parameters = initial(found.network, placement, observers_of(found.network, batch), "minmax", fixed)
    assert _engine_size(write(found.network, placement, parameters), capability) > 0


def test_an_engine_is_not_made_of_what_tensorrt_does_not_take() -> None:
    network, batch = basic().network(), images()
    placement = place(network, target("onnxruntime"))  # unsigned activations with zero points
    parameters = initial(network, placement, observers_of(network, batch), "minmax", {})
    with pytest.raises(AssertionError, match="asymmetric quantization"):
        _engine_size(write(network, placement, parameters), "SM86")
