"""What a run is to do: the values of a pipeline file with those of the command line over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from exporter.run.keys import SECTIONS
from runtimes.errors import InputError

#: Suffixes of checkpoints, as :data:`exporter.models.checkpoint.SUFFIXES`, which cannot be imported without torch.
_CHECKPOINTS: Final = frozenset({".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin", ".tar"})
_WORDS: Final = frozenset({"random", "DEFAULT"})


@dataclass(frozen=True)
class Settings:
    """A pipeline, checked.

    Attributes:
        file: Where it was read.
        tables: Section, or ``engine.NAME`` and ``runtime.NAME`` -> key -> value, defaults filled in. Paths are whole.
    """

    file: Path
    tables: Mapping[str, Mapping[str, Any]]

    def __getitem__(self, section: str) -> Mapping[str, Any]:
        return self.tables[section]

    def named(self, section: str) -> Mapping[str, Mapping[str, Any]]:
        """The tables of a section of which there can be several, by name."""
        start = f"{section}."
        return {name.removeprefix(start): table for name, table in self.tables.items() if name.startswith(start)}

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self["output"]["folder"])

    @property
    def images(self) -> Path | None:
        """What models are compared on: images that took no part in calibration, where there are any."""
        found = self["data"]["evaluation"] or self["data"]["calibration"]
        return None if found is None else Path(found)

    def pick(self, *addresses: str) -> dict[str, Any]:
        """Options by address, as plain JSON values, for the key of a stage.

        Paths are left out, as what they name counts and not where it is; so is a source that is a file.

        Args:
            addresses: ``section`` for all of its keys, or ``section.key``.
        """
        found: dict[str, Any] = {}
        for address in addresses:
            if address in self.tables:
                found |= self._section(address)
            else:
                found[address] = self._section(address.rpartition(".")[0])[address]
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def _section(self, table: str) -> dict[str, Any]:
        kinds = {key.name: key.kind for key in SECTIONS[table.partition(".")[0]].keys}
        return {
            f"{table}.{name}": value
            for name, value in self.tables[table].items()
            if kinds[name] != "path" and not (kinds[name] == "source" and value and names_file(value))
        }

    def check(self) -> None:
        """Refuse what cannot go together, before any work.

        Raises:
            InputError: Something is asked for without what it needs.
        """
        for wrong, line in _contradictions(self):
            if wrong:
                raise InputError(f"{self.file}: {line}")


def names_file(text: str) -> bool:
    """Whether a model's source, as :func:`whole` left it, is a file and not the name of a network."""
    return Path(text).is_absolute()


def whole(kind: str, text: str, base: Path) -> str:
    """A path or a source with the folder that it is relative to.

    Args:
        kind: ``path`` or ``source``.
        text: As it was written.
        base: Folder of the pipeline file, or the working directory for a value of the command line.
    """
    path = Path(text).expanduser()
    if kind == "source" and (text in _WORDS or not _like_a_file(text, base / path)):
        return text
    return str(Path(base.absolute(), path))


def _like_a_file(text: str, path: Path) -> bool:
    """Whether :func:`exporter.models.source.load_model` would look for a file."""
    if text.startswith("timm:"):
        return False
    named = Path(text).suffix.lower() in _CHECKPOINTS or (Path(text).parent != Path() and ":" not in text)
    return named or path.is_file()


def frozen(tables: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The same, and nobody can change it."""
    return MappingProxyType({name: MappingProxyType(dict(table)) for name, table in tables.items()})


def _contradictions(settings: Settings) -> list[tuple[bool, str]]:
    data, quantize, gates, bench = (settings[name] for name in ("data", "quantize", "gates", "bench"))
    onnx, targets = settings["onnx"], quantize["targets"]
    built = any(table["flavour"] != "tensorrt_rtx" for table in settings.named("engine").values())
    engines, runtimes = settings.named("engine"), settings.named("runtime")
    int8 = [name for name, table in engines.items() if table["model"] == "int8"]
    ranged = [name for name, table in engines.items() if table["ranges"]]
    idle = [name for name in ("tensorrt", "tensorrt-rtx") if name in runtimes and not engines]
    double = [name for name, table in engines.items() if table["ranges"] and _builds_int8(table, targets)]
    return [
        (len(set(targets)) < len(targets), "quantize.targets names one twice: leave one out"),
        (len(set(bench["batches"])) < len(bench["batches"]), "bench.batches has one twice: leave one out"),
        (onnx["fp16_io"] and onnx["precision"] != "fp16", 'onnx.fp16_io needs onnx.precision = "fp16"'),
        (bool(targets) and onnx["precision"] != "fp32",
         'quantize.targets needs onnx.precision = "fp32": INT8 starts from the FP32 file'),
        (bool(targets) and data["calibration"] is None, "quantize.targets needs images: give data.calibration"),
        (bool(int8) and "tensorrt" not in targets,
         f'engine.{"".join(int8[:1])}.model = "int8" needs "tensorrt" among quantize.targets'),
        (bool(ranged) and data["calibration"] is None,
         f"engine.{''.join(ranged[:1])}.ranges needs images: give data.calibration"),
        (bool(double), f'engine.{"".join(double[:1])}.ranges is for the float file: give model = "float" as well'),
        (bool(ranged) and not built, "engine.NAME.ranges needs TensorRT 10 or before: TensorRT-RTX takes Q/DQ only"),
        (bool(idle), f"runtime.{''.join(idle[:1])} runs engines: give an [engine.NAME], or leave it out"),
        (gates["max_drop"] is not None and data["evaluation"] is None,
         "gates.max_drop needs labelled images: give data.evaluation"),
        (gates["min_sqnr_db"] is not None and settings.images is None,
         "gates.min_sqnr_db needs images: give data.evaluation"),
        (gates["max_latency_ms"] is not None and not bench["batches"], "gates.max_latency_ms needs bench.batches"),
    ]  # fmt: skip


def _builds_int8(engine: Mapping[str, Any], targets: tuple[str, ...]) -> bool:
    return engine["model"] == "int8" or (engine["model"] is None and "tensorrt" in targets)
