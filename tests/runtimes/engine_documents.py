"""Inspector documents in the shapes of each generation of TensorRT, made of a few facts about each layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from runtimes.tensorrt.inspect_network import NetworkNode

Generation = Literal["8.5", "8.6", "10", "11"]
GENERATIONS: tuple[Generation, ...] = ("8.5", "8.6", "10", "11")

# The inspector's own words for the layout in which a kernel takes a type, and for the type alone.
LAYOUTS = {
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
    "FP16": "Channel major FP16 format where channel % 8 == 0",
    "FP32": "Row major linear FP32",
    "BF16": "Channel major BFloat16 format where channel % 8 == 0",
    "FP8": "Row major linear FP8 format",
}
WORDS = {"INT8": "Int8", "FP16": "Half", "FP32": "Float", "BF16": "BFloat16", "FP8": "FP8"}
DYNAMIC = "N/A due to dynamic shapes"
TACTICS = {
    "INT8": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32",
    "FP16": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize256x64x32",
    "FP32": "sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize128x128x8",
    "TF32": "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16",
}


@dataclass
class L:
    """One layer: what it fuses, between which tensors, and in which type."""

    nodes: Sequence[str]
    kind: str = "CaskConvolution"
    source: str = "INT8"
    target: str = "INT8"
    inputs: Sequence[str] = ("x",)
    outputs: Sequence[str] = ("y",)
    name: str = ""
    shape: Sequence[int] = (8, 64, 56, 56)
    more: dict[str, Any] = field(default_factory=dict)


def convolution(*nodes: str, precision: str = "INT8", weights: str = "", **more: Any) -> L:
    """A convolution's kernel; a second input is the other side of a residual Add."""
    tactic = more.pop("tactic", TACTICS.get(precision, ""))
    raw = {
        "ParameterType": "Convolution",
        "Weights": {"Type": WORDS[weights or precision], "Count": 36864},
        "Activation": more.pop("activation", "NONE"),
        "TacticName": tactic,
        "TacticValue": "0x0866ddee325d07a6",
    }
    return L(nodes, source=precision, target=more.pop("target", precision), more=raw, **more)


def reformat(to: str, source: str, target: str, kind: str = "Reformat") -> L:
    """A copy that TensorRT adds in front of a kernel."""
    name = f"Reformatting CopyNode for Input Tensor 0 to {to}"
    return L((), kind, source, target, name=name, more={"ParameterType": "Reformat", "Origin": "REFORMAT"})


def quantiser(node: str, source: str = "FP32", target: str = "INT8", **more: Any) -> L:
    """A Q/DQ that runs by itself: a Reformat whose origin tells it."""
    return L((node,), "Reformat", source, target, more={"ParameterType": "Reformat", "Origin": "QDQ"}, **more)


def pointwise(*nodes: str, precision: str, operation: str = "Plus", **more: Any) -> L:
    """Operators outside any convolution."""
    raw = {"ParameterType": "PointWise", "Operations": [f"auto const var0 = pwgen::i{operation}(arg0, arg1);"]}
    name = f"PWN({', '.join(nodes)})"
    return L(nodes, "PointWiseV2", precision, precision, name=name, more=raw, **more)


def layer(spec: L, generation: Generation = "8.6", *, dynamic: bool = False) -> dict[str, Any]:
    """The object of one layer, as a generation writes it."""
    raw: dict[str, Any] = {"Name": spec.name or " + ".join(spec.nodes), "LayerType": spec.kind}
    for key, tensors, kind in (("Inputs", spec.inputs, spec.source), ("Outputs", spec.outputs, spec.target)):
        raw[key] = [tensor(name, kind, spec.shape, generation, dynamic=dynamic) for name in tensors]
    raw.update(spec.more)
    if generation != "8.5":
        raw["StreamId"] = 0
        raw["Metadata"] = metadata(() if spec.name.startswith("Reformatting") else spec.nodes)
    return raw


def metadata(nodes: Iterable[str], separator: str = "\x1e") -> str:
    return separator.join(f"[ONNX Layer: {node}]" for node in nodes)


def tensor(
    name: str, kind: str, shape: Sequence[int], generation: Generation, *, dynamic: bool = False
) -> dict[str, Any]:
    raw: dict[str, Any] = {"Name": name, "Location": "Device"}
    raw["Dimensions"] = [-1, *shape[1:]] if dynamic else list(shape)
    if generation == "11":
        raw.update({"Format": LAYOUTS[kind], "DataType": WORDS[kind]})
    else:
        raw["Format/Datatype"] = DYNAMIC if dynamic else LAYOUTS[kind]
    return raw


def document(
    specs: Iterable[L], generation: Generation = "8.6", *, tensors: Sequence[str] = ("input", "logits"), **more: Any
) -> str:
    """The whole of what the inspector returns."""
    raw: dict[str, Any] = {"Layers": [layer(spec, generation, **more) for spec in specs]}
    if generation == "11":
        modes = ("Input", *("Output" for _ in tensors[1:]))
        raw["I/O Tensors"] = [
            {"Name": name, "IOMode": mode, "DataType": "Float", "Dimensions": [8, 3, 224, 224], "ProfileInfo": []}
            for name, mode in zip(tensors, modes, strict=True)
        ]
    else:
        raw["Bindings"] = list(tensors)
    return json.dumps(raw)


def resnet50() -> tuple[list[NetworkNode], list[L]]:
    """A quantised ResNet-50 and the layers of its engine: the stem in FP16, all else fused in INT8."""
    network = [
        NetworkNode("conv1", "Conv", channels=3, quantised=True),
        NetworkNode("relu", "Relu"),
        NetworkNode("maxpool", "MaxPool"),
    ]
    layers = [
        reformat("conv1 + relu", "FP32", "FP16"),
        convolution("conv1", "relu", precision="FP16", shape=(8, 3, 224, 224), activation="RELU"),
        quantiser("maxpool.quantized", "FP16"),
        L(("maxpool",), "CudaPooling", more={"ParameterType": "Pooling", "PoolingType": "MAX"}),
    ]
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            path = f"layer{stage}.{block}"
            convolutions = [(f"{path}.conv1", channels), (f"{path}.conv2", width), (f"{path}.conv3", width)]
            if block == 0:
                convolutions.insert(2, (f"{path}.downsample.0", channels))
            network += [NetworkNode(name, "Conv", channels=number, quantised=True) for name, number in convolutions]
            network.append(NetworkNode(f"{path}.add", "Add"))
            layers += [
                convolution(f"{name}.weight.quantized", f"{name}.weight.dequantized", name)
                for name, _ in convolutions[:-1]
            ]
            fused = (f"{path}.conv3", f"{path}.add", f"{path}.relu_2")
            layers.append(convolution(*fused, inputs=("x", "shortcut"), activation="RELU"))
            channels = 4 * width
    network.append(NetworkNode("fc", "Gemm", channels=2048, quantised=True))
    layers.append(convolution("fc.weight.quantized", "fc.weight.dequantized", "fc", target="FP32"))
    return network, layers
