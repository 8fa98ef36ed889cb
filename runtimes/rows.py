"""The table of runtimes: what each takes, which options it has, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from runtimes.base import Runtime
from runtimes.kinds import Kind
from runtimes.options import Option

Options: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One runtime.

    Attributes:
        name: As the user writes it.
        summary: What it is, one sentence without a full stop.
        takes: Kinds of models.
        takes_text: The same for people.
        options: That it has.
        open: Makes the runtime from a path, a URL or a module, whichever it takes, and the options that were given.
        extra: Extra of this project that brings its package; ``None``: a core dependency.
    """

    name: str
    summary: str
    takes: frozenset[Kind]
    takes_text: str
    options: tuple[Option, ...]
    open: Callable[[Any, Options], Runtime]
    extra: str | None = None

    @property
    def of_model(self) -> frozenset[str]:
        """Names of the options that say which model is loaded."""
        return frozenset(option.name for option in self.options if option.of_model)


@dataclass(frozen=True)
class _Made:
    """Makes a runtime by a class or function that is imported when it is needed.

    Attributes:
        target: ``module:name``.
        given: Arguments that every user gets.
        hashed: Options that name an ONNX file, and the arguments that take its sha256.
    """

    target: str
    given: Options = field(default_factory=dict)
    hashed: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, model: Any, options: Options) -> Runtime:
        module, _, name = self.target.partition(":")
        arguments = {**self.given, **options}
        for option in self.hashed.keys() & options.keys():
            from runtimes.reading import read_model

            arguments[self.hashed[option]] = read_model(Path(arguments.pop(option)), "give an ONNX file")[1]
        runtime: Runtime = getattr(import_module(module), name)(model, **arguments)
        return runtime


def _choice(name: str, choices: tuple[str, ...], text: str) -> Option:
    return Option(name, "choice", text, choices[0], choices)


_MOST_THREADS: Final = 1024  # each takes a stack, and no machine has more cores to give them
_THREADS: Final = Option(
    "threads", "int", "CPU threads of one operator", "the runtime's own", lowest=1, highest=_MOST_THREADS
)
_GPU: Final = Option("device", "int", "Number of the GPU", "0")
_TF32: Final = Option("tf32", "bool", "Whether a GPU may round the inputs of FP32 products to TF32", "false")
_MODEL: Final = (
    Option("weights", "text", "Checkpoint, `random` or `DEFAULT`, for a network's name", "none", of_model=True),
    Option("folded", "bool", "Whether BatchNorms are folded into the convolutions first", "false", of_model=True),
    Option("num_classes", "int", "Width of the classifier", "the network's own", lowest=1, of_model=True),
    Option("in_channels", "int", "Channels of the image", "3", lowest=1, of_model=True),
    Option("input_size", "size", "Height and width of the image", "the network's own", of_model=True),
    Option("checkpoint_key", "text", "Place of the weights in a checkpoint with several", "found", of_model=True),
    Option("seed", "int", "Of random weights", "0", highest=2**63 - 1, of_model=True),
    Option("bn_eps", "float", "What BatchNorm adds to a variance", "1e-5", of_model=True),
)
_MODULE: Final = (
    Option("device", "text", "`cpu`, `cuda` or `cuda:N`", "cpu"),
    _choice("dtype", ("float32", "float16", "bfloat16"), "What weights and activations are rounded to"),
    _THREADS,
    _TF32,
)
_MODULES: Final[frozenset[Kind]] = frozenset({"checkpoint", "source"})
_MODULES_TEXT: Final = "checkpoints and names of networks"
_ONNX: Final[frozenset[Kind]] = frozenset({"onnx"})
_ONNX_TEXT: Final = "ONNX files"
_OPTIMIZE: Final = Option("optimize", "bool", "Whether nodes may be fused and rewritten", "true")
_CUDA_GRAPH: Final = Option("cuda_graph", "bool", "Whether the launches of one batch are recorded and replayed", "true")

_ENGINE_MODEL: Final = Option("model", "text", "ONNX file that the engine has to be made from", "not looked at")
_HOST_CODE: Final = Option(
    "host_code", "bool", "Whether a version-compatible engine may run the program that it brings", "false"
)
_SOURCE: Final = {"model": "source_sha256"}
_NUMBERS: Final = ("fp32", "tf32", "fp16", "int8")
_FLAVOURS: Final = ("tensorrt", "tensorrt_lean", "tensorrt_dispatch")

# The first row that takes a kind of model is the one that runs it where no runtime is named.
_TABLE: Final = (
    Row("eager", "PyTorch, operator by operator: the reference", _MODULES, _MODULES_TEXT, (*_MODULE, *_MODEL),
        _Made("runtimes.eager:EagerRuntime", {"place": True})),
    Row(
        "torch-compile", "PyTorch, compiled by TorchInductor; needs a C++ compiler", _MODULES, _MODULES_TEXT,
        (
            *_MODULE,
            _choice("mode", ("default", "reduce-overhead", "max-autotune"), "How long to search for fast kernels"),
            Option("freezing", "bool", "Whether weights become constants", "false"),
            Option("channels_last", "bool", "Whether the channels are innermost in memory", "false"),
            *_MODEL,
        ),
        _Made("runtimes.torch_compile:TorchCompileRuntime", {"place": True}),
    ),
    Row(
        "onnxruntime", "ONNX Runtime on the CPU", _ONNX, _ONNX_TEXT,
        (_THREADS, _OPTIMIZE),
        _Made("runtimes.ort:OrtRuntime", {"cast_input": True}),
    ),
    Row(
        "openvino", "OpenVINO", _ONNX, _ONNX_TEXT,
        (
            Option("device", "text", "One of OpenVINO's devices, for example `CPU` or `GPU.0`", "CPU"),
            _choice("precision", ("f32", "f16", "bf16"), "What float layers are computed in"),
            _THREADS,
            Option("streams", "int", "Batches that may be computed at a time", "1", lowest=1, highest=_MOST_THREADS),
        ),
        _Made("runtimes.openvino:OpenVinoRuntime", {"cast_input": True}), "openvino",
    ),
    Row("int8-sim", "The integer arithmetic of a Q/DQ file, exactly, on any machine", _ONNX, _ONNX_TEXT, (),
        _Made("runtimes.int8_sim:Int8SimRuntime")),
    Row("ort-cuda", "ONNX Runtime on an NVIDIA GPU", _ONNX, _ONNX_TEXT, (_GPU, _TF32, _OPTIMIZE),
        _Made("runtimes.ort_gpu:ort_cuda", {"cast_input": True})),
    Row(
        "ort-tensorrt", "ONNX Runtime with TensorRT engines that it builds itself", _ONNX, _ONNX_TEXT,
        (_GPU, Option("precision", "choice", "What the engine computes in", "what the file carries", _NUMBERS)),
        _Made("runtimes.ort_gpu:ort_tensorrt", {"cast_input": True}),
    ),
    Row(
        "tensorrt", "A TensorRT engine", frozenset({"tensorrt"}), "TensorRT engines",
        (
            _GPU, _CUDA_GRAPH,
            Option("flavour", "choice", "Package that runs the engine", "the one that built it", _FLAVOURS),
            _ENGINE_MODEL,
            _HOST_CODE,
        ),
        _Made("runtimes.tensorrt.run:TensorRTRuntime", {}, _SOURCE), "tensorrt",
    ),
    Row(
        "tensorrt-rtx", "A TensorRT-RTX engine", frozenset({"tensorrt-rtx"}), "TensorRT-RTX engines",
        (_GPU, _CUDA_GRAPH, _ENGINE_MODEL),
        _Made("runtimes.tensorrt.run:TensorRTRuntime", {"name": "tensorrt-rtx", "flavour": "tensorrt_rtx"}, _SOURCE),
        "tensorrt-rtx",
    ),
    Row(
        "triton", "A model on a Triton server, or another one of KServe's protocol",
        frozenset({"served"}), "URLs as http://HOST:8000/MODEL or grpc://HOST:8001/MODEL",
        (
            Option("version", "text", "Version of the model", "the highest that is loaded"),
            Option("timeout", "float", "Seconds that each answer may take", "60"),
            Option("model", "text", "ONNX file that the server's model is, or is made from", "not looked at"),
        ),
        _Made("runtimes.remote:TritonRuntime", {"cast_input": True}, _SOURCE), "triton",
    ),
)  # fmt: skip

ROWS: Final[Mapping[str, Row]] = MappingProxyType({row.name: row for row in _TABLE})
"""Runtimes by name."""
