"""The stages of a pipeline, in order: one builder for each kind, and one row for each builder.

::

    onnx ─▶ calibrate ─▶ quantize TARGET ─▶ engine NAME ─▶ parity ─▶ evaluate ─▶ bench ─▶ report ─▶ bundle

A stage that is added is one builder, from settings to :class:`~exporter.run.stage.Stage` values, and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from exporter.bundle.layout import MANIFEST, MANIFEST_SHA256
from exporter.run import make, prove
from exporter.run.layout import Layout, beside, engine_source
from exporter.run.runtimes import DISTRIBUTIONS, ON_GPU, Subject, products, subjects
from exporter.run.settings import Settings, names_file
from exporter.run.stage import Input, Stage
from exporter.run.versions import gpus, processor

Builder = Callable[[Settings], Iterator[Stage]]
_FIELDS: Final = tuple(
    f"data.{name}" for name in ("preset", "resize", "interpolation", "color", "scale", "mean", "std")
)
_PICTURES: Final = MappingProxyType({"numpy": ("numpy",), "pillow": ("pillow",)})
_GRAPHS: Final = MappingProxyType({"onnx": ("onnx",), "onnxruntime": DISTRIBUTIONS["onnxruntime"]})
_FLOAT: Final = "the float file"
_CALIBRATION: Final = "the calibration images"


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Every stage that a pipeline asks for, in order; nothing is read or imported for it but the table itself."""
    return tuple(stage for build in ROWS for stage in build(settings))


def _onnx(settings: Settings) -> Iterator[Stage]:
    model, layout = settings["model"], Layout(settings.folder)
    given = (("the checkpoint", model["source"]), ("the weights", model["weights"]))
    inputs = [Input(name, Path(path)) for name, path in given if path and names_file(path)]
    source = str(model["source"])
    tools = {name: (name,) for name in ("torch", "onnx", "onnxscript", "onnxsim", "numpy")} | dict(_GRAPHS)
    if source.startswith("timm:"):
        tools["timm"] = ("timm",)
    elif ":" in source and not names_file(source):
        inputs.append(Input("the factory's code", Path(source.partition(":")[0]), "code"))
    if model["weights"] == "DEFAULT":
        tools["torchvision"] = ("torchvision",)
    if settings["onnx"]["labels"]:
        inputs.append(Input("the class names", Path(settings["onnx"]["labels"])))
    yield Stage(
        "onnx", tuple(inputs), (layout.model, beside(layout.model)), partial(make.onnx, settings),
        settings.pick("model", "onnx", *_FIELDS), tools,
    )  # fmt: skip


def _calibrate(settings: Settings) -> Iterator[Stage]:
    data, layout = settings["data"], Layout(settings.folder)
    needed = settings["quantize"]["targets"] or any(each["ranges"] for each in settings.named("engine").values())
    if not needed:
        return
    yield Stage(
        "calibrate", (Input(_FLOAT, layout.model), Input(_CALIBRATION, Path(data["calibration"]), "images")),
        (layout.ranges,), partial(make.ranges, settings),
        settings.pick("data.images", "data.seed", "data.max_bad", "quantize.threads"), {**_GRAPHS, **_PICTURES},
    )  # fmt: skip


def _quantize(settings: Settings) -> Iterator[Stage]:
    quantize, layout = settings["quantize"], Layout(settings.folder)
    options = settings.pick("quantize", "data.images", "data.seed", "data.max_bad")
    tools = {**_GRAPHS, **_PICTURES, "torch": ("torch",), "scipy": ("scipy",)}
    for target in quantize["targets"]:
        inputs = (
            Input(_FLOAT, layout.model),
            Input("the ranges", layout.ranges),
            Input(_CALIBRATION, Path(settings["data"]["calibration"]), "images"),
        )
        path = layout.int8(target)
        unused = {"quantize.targets", "quantize.cpu" if target == "tensorrt" else "quantize.fold_zero_point"}
        own = {name: value for name, value in options.items() if name not in unused}
        yield Stage(
            f"quantize {target}", inputs, (path, beside(path)), partial(make.int8, settings, target), own, tools
        )


def _engines(settings: Settings) -> Iterator[Stage]:
    layout = Layout(settings.folder)
    for name, engine in settings.named("engine").items():
        source = engine_source(settings, name)
        inputs = [Input(_FLOAT if source == layout.model else "the INT8 file", source)]
        if engine["ranges"]:
            inputs.append(Input("the ranges", layout.ranges))
        path = layout.engine(name)
        tools = {"onnx": ("onnx",)} | {name: DISTRIBUTIONS[name] for name in ("tensorrt", "tensorrt-rtx")}
        yield Stage(
            f"engine {name}", tuple(inputs), (path, beside(path)), partial(make.engine, settings, name),
            settings.pick(f"engine.{name}"), tools, {"GPU": gpus()}, engine["optional"],
        )  # fmt: skip


def _parity(settings: Settings) -> Iterator[Stage]:
    if settings.images is None:
        return
    yield _proof(
        settings, "parity", prove.parity, subjects(settings), settings.images,
        settings.pick("parity", "data.seed", "data.max_bad"),
    )  # fmt: skip


def _evaluate(settings: Settings) -> Iterator[Stage]:
    if settings["data"]["evaluation"] is None:
        return
    yield _proof(
        settings, "evaluate", prove.evaluate, subjects(settings), settings.images,
        settings.pick("evaluate", "data.seed", "data.max_bad"),
    )  # fmt: skip


def _bench(settings: Settings) -> Iterator[Stage]:
    if not settings["bench"]["batches"]:
        return
    timed = tuple(each for each in subjects(settings) if each.timed)
    yield _proof(settings, "bench", prove.bench, timed, settings.images, settings.pick("bench", "data.seed"))


def _proof(
    settings: Settings,
    name: str,
    function: Callable[..., Any],
    who: tuple[Subject, ...],
    images: Path | None,
    options: dict[str, Any],
) -> Stage:
    """What parity, evaluate and bench have in common: files on runtimes, images, and the machine that runs them."""
    files = dict.fromkeys(Path(each.file) for each in who if names_file(each.file))
    weights = settings["model"]["weights"]
    if weights and names_file(weights):
        files[Path(weights)] = None
    inputs = [Input(_shown(settings, path), path) for path in files]
    if images is not None:
        inputs.append(Input("the images", images, "images"))
    used = sorted({each.runtime for each in who})
    facts = processor() | ({"GPU": gpus()} if ON_GPU & set(used) else {})
    models = settings.pick("model") | {f"{name}.models": [each.label for each in who]}
    return Stage(
        name, tuple(inputs), (Layout(settings.folder).document(name),), partial(function, settings, who),
        {**options, **models}, {each: DISTRIBUTIONS[each] for each in used} | dict(_PICTURES), facts,
    )  # fmt: skip


def _shown(settings: Settings, path: Path) -> str:
    folder = settings.folder
    return path.relative_to(folder).as_posix() if folder in path.parents else path.name


def _report(settings: Settings) -> Iterator[Stage]:
    layout = Layout(settings.folder)
    made = [stage.name for build in (_parity, _evaluate, _bench) for stage in build(settings)]
    if not made:
        return
    suffixes = ["html", *(["md"] if settings["output"]["markdown"] else []),
                *(["xml"] if settings["output"]["junit"] else [])]  # fmt: skip
    inputs = tuple(Input(f"{name}.json", layout.document(name)) for name in made)
    options = settings.pick("gates", "output.title") | {"gates.models": sorted(products(settings))}
    yield Stage(
        "report", inputs, tuple(map(layout.report, suffixes)), partial(prove.report, settings, tuple(made)), options,
        {"jinja2": ("jinja2",)},
    )  # fmt: skip


def _bundle(settings: Settings) -> Iterator[Stage]:
    wanted, layout = settings["bundle"], Layout(settings.folder)
    if not wanted["make"] or settings.images is None:
        return
    engines = [layout.engine(name) for name in settings.named("engine")]
    models = [layout.model, *map(layout.int8, settings["quantize"]["targets"]), *engines]
    inputs = [Input(_shown(settings, path), path) for path in models]
    inputs.append(Input("the images", settings.images, "images"))
    if wanted["license"]:
        inputs.append(Input("the licence", Path(wanted["license"])))
    # Of a folder, the manifest has the hashes of all the rest: `verify` reads it all, a second run has two seconds.
    made = (layout.archive,) if wanted["archive"] else (layout.bundle / MANIFEST, layout.bundle / MANIFEST_SHA256)
    yield Stage(
        "bundle", tuple(inputs), made, partial(make.bundle, settings, tuple(models)),
        settings.pick("bundle", "data.seed"), {**_GRAPHS, **_PICTURES}, processor(),
    )  # fmt: skip


ROWS: Final[tuple[Builder, ...]] = (
    _onnx,
    _calibrate,
    _quantize,
    _engines,
    _parity,
    _evaluate,
    _bench,
    _report,
    _bundle,
)
"""A builder for every kind of stage, in the order in which they run."""
