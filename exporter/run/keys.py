"""The one table of keys: the file, the options of ``run``, ``init`` and the documentation are all drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from exporter.run.kinds import Key

TARGETS: Final = ("tensorrt", "onnxruntime", "openvino")
_PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
_LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True)
class Section:
    """A table of the file.

    Attributes:
        name: As it is written.
        help: What it is about, one sentence.
        keys: In it.
        example: A name for a section of which there can be several, ``[engine.NAME]``; empty for the others.
    """

    name: str
    help: str
    keys: tuple[Key, ...]
    example: str = ""

    def key(self, name: str) -> Key | None:
        """A key by name."""
        return next((key for key in self.keys if key.name == name), None)


_MODEL: Final = Section("model", "The network, as `resnet-export onnx MODEL` takes it.", (
    Key("source", "source", "Checkpoint, variant (resnet50), timm:NAME or package.module:factory", required=True,
        example="checkpoint.pth", flag="--source"),
    Key("weights", "source", "Weights for a variant, timm: or factory: a file, random or DEFAULT",
        example="weights.pth", flag="--weights"),
    Key("num_classes", "int", "Classes, where not the variant's own", low=1, example=10),
    Key("in_channels", "int", "Image channels, where not 3", low=1, example=1),
    Key("input_size", "size", "Image size; without it the family's (224 or 32)", example="224x224"),
    Key("bn_eps", "float", "BatchNorm's eps, where not 1e-5", low=1e-12, example=1e-3),
    Key("checkpoint_key", "text", "Place of the weights in a file that holds several", example="ema.module"),
    Key("seed", "int", "Of random weights", 0, low=0, high=_LARGEST_SEED),
))  # fmt: skip
_ONNX: Final = Section("onnx", "The float file, model.onnx.", (
    Key("opset", "int", "ONNX operator set; 13 is for JetPack 4.6", 17, low=1, flag="--opset"),
    Key("precision", "choice", "fp16: every tensor inside the graph is FP16", "fp32", ("fp32", "fp16"),
        flag="--precision"),
    Key("fp16_io", "bool", "With fp16: input and output are FP16 too", False),
    Key("batch", "int", "Fixed batch; without it any", low=1, example=1),
    Key("dynamic_size", "bool", "Height and width stay free", False),
    Key("simplify", "bool", "Whether onnxsim is asked", True, flag="--simplify"),
    Key("exporter", "choice", "auto: TorchScript's only where torch.export's file fails a check", "auto",
        ("auto", "torch.export", "torchscript")),
    Key("labels", "path", "Class names, one per line", example="labels.txt"),
))  # fmt: skip
_DATA: Final = Section("data", "Images, and how a file becomes the model's input.", (
    Key("calibration", "path", "Images to calibrate with: a folder, class folders, a list or an array file",
        example="images/train", flag="--calibration"),
    Key("evaluation", "path", "Labelled images to measure on, which take no part in calibration",
        example="images/test", flag="--evaluation"),
    Key("images", "int", "How many calibrate, sampled evenly over classes; 0: all", 512, low=0, flag="--images"),
    Key("seed", "int", "Of samples, and of learning in quantisation", 0, low=0, high=_LARGEST_SEED),
    Key("max_bad", "float", "Fraction of the images that may be unusable", 0.01, low=0, high=1),
    Key("workers", "int", "Processes that decode images; without it as many as are worth it", low=0, example=2),
    Key("preset", "choice", "Preprocessing to start from, where not the model's own", None, ("imagenet", "cifar"),
        example="imagenet"),
    Key("resize", "int", "Shorter side in pixels before the centre crop", low=1, example=256),
    Key("interpolation", "choice", "Filter of the resize", None, ("bilinear", "bicubic", "nearest"),
        example="bilinear"),
    Key("color", "choice", "Channel order", None, ("RGB", "BGR", "L"), example="RGB"),
    Key("scale", "float", "Factor on 8-bit values; without it 1/255", example=1.0),
    Key("mean", "floats", "Taken off each channel, after the scale", example=[0.485, 0.456, 0.406]),
    Key("std", "floats", "Divides each channel", example=[0.229, 0.224, 0.225]),
))  # fmt: skip
_QUANTIZE: Final = Section("quantize", "INT8 files, int8/TARGET.onnx, one for each target.", (
    Key("targets", "texts", "Runtimes to make a file for", (), TARGETS, flag="--targets"),
    Key("method", "choice", "How a range is chosen from what was seen", "mse",
        ("minmax", "average", "percentile", "entropy", "mse"), flag="--method"),
    Key("effort", "choice", "fast: no refinement; balanced: equalisation and bias correction; best: learned",
        "balanced", ("fast", "balanced", "best"), flag="--effort"),
    Key("max_drop", "float", "Leave the worst layers in float until at most so many points of top-1 are lost",
        low=0, high=100, example=0.5),
    Key("keep_fp", "texts", "Layers to leave in float", ()),
    Key("keep_worst", "int", "So many of the most sensitive layers are left in float", 0, low=0),
    Key("cpu", "choice", "Processor that onnxruntime and openvino will run on", "any",
        ("any", "vnni", "avx2", "arm")),
    Key("fold_zero_point", "choice", "tensorrt: where zero points are folded into biases; without it by effort",
        None, ("all", "free", "none"), example="free"),
    Key("threads", "int", "Threads that run the model; without it one per core", low=1, example=2),
))  # fmt: skip
_ENGINE: Final = Section("engine", "TensorRT engines, engines/NAME.engine; a table for each.", (
    Key("flavour", "choice", "Which TensorRT; without it the best that is installed", None,
        ("tensorrt", "tensorrt_rtx"), example="tensorrt_rtx"),
    Key("model", "choice", "Built from the float file or the INT8 one; without it INT8 where tensorrt is a target",
        None, ("float", "int8"), example="int8"),
    Key("precision", "choice", "Without it what the file carries", None, _PRECISIONS, example="int8"),
    Key("ranges", "bool", "INT8 for the float file by its ranges; TensorRT 10 and before", False),
    Key("min", "text", "Smallest batch, and image where it is free: N[xHxW]", example="1"),
    Key("opt", "text", "The batch that kernels are chosen for", example="8"),
    Key("max", "text", "Largest batch", example="32"),
    Key("compute_capability", "texts", "GPUs to build for, here or not; TensorRT-RTX", ()),
    Key("workspace", "int", "Memory in MiB that kernels may use", low=1, high=1 << 20, example=1024),
    Key("version_compatible", "bool", "Runs on later versions of the same major TensorRT", False),
    Key("hardware_compatible", "choice", "Runs on all GPUs from Ampere on, or of the same compute capability", None,
        ("ampere+", "same"), example="ampere+"),
    Key("strip", "bool", "Leave the weights out, to be filled in on the device", False),
    Key("refit", "bool", "Weights can be exchanged later", False),
    Key("dla_core", "int", "Deep learning accelerator to run on", low=0, example=0),
    Key("optional", "bool", "Go on without it where TensorRT or a GPU is missing", False),
), example="rtx")  # fmt: skip
_RUNTIME: Final = Section("runtime", "What runs the files for the proof; without any, each file runs on its own.", (
    Key("options", "text", "As behind the @ of RUNTIME:FILE@option=value,…", example="threads=2"),
    Key("optional", "bool", "Go on without it where its package or a GPU is missing", False),
), example="onnxruntime")  # fmt: skip
_PARITY: Final = Section("parity", "Do all files compute the same as the model? Needs images.", (
    Key("images", "int", "How many, of the evaluation images or else of calibration; 0: all", 512, low=0),
    Key("batch", "int", "Images that are run at once", 32, low=1, high=4096),
    Key("simulated", "int", "Images on which INT8 is held against its simulation, at most; 0: none", 256, low=0),
    Key("drift", "bool", "Follow differences from layer to layer", True, flag="--drift"),
))  # fmt: skip
_EVALUATE: Final = Section("evaluate", "Accuracy on data.evaluation, where that is given.", (
    Key("images", "int", "How many, sampled evenly over classes; 0: all", 0, low=0),
    Key("batch", "int", "Images that are run at once", 32, low=1, high=4096),
))  # fmt: skip
_BENCH: Final = Section("bench", "Latency, throughput and memory.", (
    Key("batches", "ints", "Images in a run, a measurement for each; empty: nothing is measured", (1,), low=1,
        high=4096, flag="--batches"),
    Key("rounds", "int", "Turns that every model gets", 20, low=2, high=10_000),
    Key("turn_ms", "float", "About how long a turn is, in ms", 100.0, low=1e-3),
    Key("cold", "bool", "Measure cold start and memory too", True),
))  # fmt: skip
_GATES: Final = Section("gates", "What makes the run fail: bounds of INT8 files and engines, else of the float file.", (
    Key("max_drop", "float", "Percentage points of top-1 that may be lost against the model", low=0, high=100,
        example=0.5, flag="--max-drop"),
    Key("min_sqnr_db", "float", "Smallest SQNR of the logits against the model, in dB", example=25.0,
        flag="--min-sqnr"),
    Key("max_latency_ms", "float", "Largest median latency at the first of bench.batches, in ms", low=0,
        example=10.0, flag="--max-latency"),
))  # fmt: skip
_BUNDLE: Final = Section("bundle", "What a device gets: models, preprocessing, goldens and run.py. Needs images.", (
    Key("make", "bool", "Whether it is made", True, flag="--bundle"),
    Key("archive", "bool", "bundle.tar.zst instead of the folder bundle", False),
    Key("images", "int", "Golden images, sampled evenly over classes", 16, low=1, high=4096),
    Key("license", "path", "Licence of the weights, or a notice of where they come from", example="LICENSE"),
    Key("dla", "bool", "Float networks with scales too, for the DLA of TensorRT 10 and before", False),
))  # fmt: skip
_OUTPUT: Final = Section("output", "Where everything goes.", (
    Key("folder", "path", "Made where it is missing", "build", flag="--output"),
    Key("title", "text", "Of the report; without it the model's name", example="ResNet-50, release 3"),
    Key("markdown", "bool", "report.md, for a pull request", False),
    Key("junit", "bool", "report.xml, for a CI system", False),
))  # fmt: skip

SECTIONS: Final[Mapping[str, Section]] = MappingProxyType({
    section.name: section
    for section in (_MODEL, _ONNX, _DATA, _QUANTIZE, _ENGINE, _RUNTIME, _PARITY, _EVALUATE, _BENCH, _GATES, _BUNDLE,
                    _OUTPUT)
})  # fmt: skip
"""All sections by name, in the order in which ``init`` writes them."""
