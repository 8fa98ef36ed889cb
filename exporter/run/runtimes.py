"""Which files are run by what, for the proof: the reference first, then every file on every runtime that is for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from exporter.run.layout import Layout, engine_source
from exporter.run.settings import Settings, names_file

if TYPE_CHECKING:
    from runtimes.registry import RuntimeSpec

#: Runtime -> what of a pipeline it runs: the ``source`` module, the ``float`` file, INT8 files by target, ``engines``.
FILES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "eager": ("source",),
    "torch-compile": ("source",),
    "onnxruntime": ("float", "onnxruntime"),
    "openvino": ("float", "openvino"),
    "int8-sim": ("tensorrt",),
    "ort-cuda": ("float",),
    "ort-tensorrt": ("float", "tensorrt"),
    "tensorrt": ("engines",),
    "tensorrt-rtx": ("engines",),
})  # fmt: skip
#: Runtime -> the distributions that it can come from.
DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "eager": ("torch",),
    "torch-compile": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "int8-sim": ("onnx",),
    "ort-cuda": ("onnxruntime-gpu",),
    "ort-tensorrt": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
})  # fmt: skip
#: Those that need a GPU.
ON_GPU: Final = frozenset({"ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"})
_REFERENCE: Final = "eager"
_SIMULATION: Final = "int8-sim"
# Whose own runtime may be elsewhere: the arithmetic of the file is simulated.
_DEFAULTS: Final = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": _SIMULATION}
_FLAVOURS: Final = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Subject:
    """A file on a runtime.

    Attributes:
        runtime: Name of the runtime.
        file: Path, or the name of a network.
        short: The same as people call it: relative to the output folder.
        options: Of the runtime, as text.
        model: ONNX file of an engine.
        int8: Whether it is an INT8 file or an engine.
        optional: Whether the run goes on without it.
    """

    runtime: str
    file: str
    short: str
    options: str = ""
    model: Path | None = None
    int8: bool = False
    optional: bool = False

    @property
    def label(self) -> str:
        """Unlike every other subject's."""
        return f"{self.runtime}:{self.short}" + (f"@{self.options}" if self.options else "")

    @property
    def timed(self) -> bool:
        """Whether its latency means anything: that of a simulation does not."""
        return self.runtime != _SIMULATION


def subjects(settings: Settings) -> tuple[Subject, ...]:
    """Everything that a pipeline runs; the first is the model itself in PyTorch, which all others are held against."""
    asked = settings.named("runtime") or _usual(settings)
    reference = {"options": "", "optional": False} | dict(asked.get(_REFERENCE, {}))
    found = list(_of_runtime(settings, _REFERENCE, reference))
    for name, table in asked.items():
        if name != _REFERENCE:
            found.extend(_of_runtime(settings, name, table))
    return tuple(found)


def products(settings: Settings) -> frozenset[str]:
    """Labels of what a device will run: INT8 files and engines, or float files where there are neither."""
    others = subjects(settings)[1:]
    small = frozenset(each.label for each in others if each.int8)
    return small or frozenset(each.label for each in others)


def spec_of(settings: Settings, subject: Subject) -> RuntimeSpec:
    """What opens it.

    Raises:
        InputError: An option of the runtime is unknown or of another type, or the file is missing.
    """
    from runtimes.kinds import kind_of
    from runtimes.options import read_options
    from runtimes.registry import RuntimeSpec
    from runtimes.rows import ROWS

    given: dict[str, Any] = dict(read_options(subject.options, ROWS[subject.runtime].options, subject.runtime))
    if FILES[subject.runtime] == ("source",):
        given |= _model_options(settings)
    if subject.model is not None:
        given["model"] = str(subject.model)
    return RuntimeSpec(subject.runtime, subject.file, kind_of(subject.file), MappingProxyType(given), subject.label)


def _usual(settings: Settings) -> Mapping[str, Mapping[str, Any]]:
    """Without any ``[runtime.NAME]``: ONNX Runtime, and what each target is for where that is installed."""
    found = {"onnxruntime": {"options": "", "optional": False}}
    for target in settings["quantize"]["targets"]:
        found.setdefault(_DEFAULTS[target], {"options": "", "optional": True})
    return found


def _of_runtime(settings: Settings, name: str, table: Mapping[str, Any]) -> Iterator[Subject]:
    layout = Layout(settings.folder)
    common = {"options": table["options"], "optional": table["optional"]}
    for what in FILES[name]:
        if what == "source":
            source = settings["model"]["source"]
            yield Subject(name, source, Path(source).name if names_file(source) else source, **common)
        elif what == "float":
            yield _file(layout, name, layout.model, **common)
        elif what == "engines":
            for engine, made in settings.named("engine").items():
                if made["flavour"] is None or _FLAVOURS[made["flavour"]] == name:
                    either = {**common, "optional": common["optional"] or made["optional"]}
                    model = engine_source(settings, engine)
                    yield _file(layout, name, layout.engine(engine), model=model, int8=True, **either)
        elif what in settings["quantize"]["targets"]:
            yield _file(layout, name, layout.int8(what), int8=True, **common)


def _file(layout: Layout, runtime: str, path: Path, **fields: Any) -> Subject:
    return Subject(runtime, str(path), path.relative_to(layout.folder).as_posix(), **fields)


def _model_options(settings: Settings) -> dict[str, Any]:
    """The ``[model]`` section as options of the runtimes that run a module."""
    model = settings["model"]
    size = model["input_size"]
    given = {
        "weights": model["weights"],
        "num_classes": model["num_classes"],
        "in_channels": model["in_channels"],
        "input_size": None if size is None else f"{size[0]}x{size[1]}",
        "checkpoint_key": model["checkpoint_key"],
        "seed": model["seed"],
        "bn_eps": model["bn_eps"],
    }
    return {name: value for name, value in given.items() if value is not None}
