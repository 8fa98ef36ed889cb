"""``resnet-export bundle``: models and images in, a folder or an archive out, with the proof inside."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import exporter.bundle.runner
from calibration.listing import ImageFile, sample
from calibration.preprocess import Preprocessing
from exporter import __version__
from exporter.bundle.archive import pack
from exporter.bundle.goldens import Golden, golden_images, npy_bytes, pixels_path
from exporter.bundle.integrity import sha256_of
from exporter.bundle.layout import (
    INPUT,
    KIND,
    LABELS,
    LICENSE,
    MANIFEST,
    MANIFEST_SHA256,
    PREPROCESSING,
    README,
    REFERENCE,
    RUNNER,
    SCHEMA,
)
from exporter.bundle.manifest import FileEntry, checksum_bytes, manifest_bytes
from exporter.bundle.models import Member, labels_of, read_members, reference_of, specs_of
from exporter.bundle.outputs import Outputs, compute_outputs
from exporter.bundle.readme import readme
from exporter.bundle.scales import dla_files
from exporter.bundle.staging import check_place, copy_file, is_archive, staged, write_file
from exporter.bundle.stream import require_zstd
from exporter.labels import read_labels
from exporter.proof_inputs import contract_for
from runtimes.base import Floats, TensorSpec
from runtimes.errors import InputError

NO_LICENSE: Final = (
    "No licence text was given when this bundle was made. Ask whoever made it where the weights come from, and what "
    "may be done with them.\n"
)
_VERSIONS: Final = ("numpy", "onnx", "onnxruntime", "pillow", "torch")
_LARGEST_LICENSE: Final = 1 << 20


@dataclass(frozen=True)
class BundleOptions:
    """What goes into a bundle beside the models.

    Attributes:
        images: Golden images, sampled evenly over the classes.
        seed: Of the sample.
        preset: Preprocessing for models that tell none; ``None`` takes what the models agree on.
        labels: File with the names of the classes; ``None`` takes what the models agree on.
        license: File with the licence of the weights, or a notice of where they come from.
        dla: Whether models for TensorRT also come as a float network with scales, which is how a DLA of TensorRT 10
            and before takes INT8.

    Raises:
        InputError: There is to be no image.
    """

    images: int = 16
    seed: int = 0
    preset: str | None = None
    labels: Path | None = None
    license: Path | None = None
    dla: bool = False

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(
                f"received {self.images} images, expected 1 or more: a bundle without goldens proves nothing"
            )


@dataclass(frozen=True)
class BundleReport:
    """What was made.

    Attributes:
        bundle: The folder or the archive.
        manifest_sha256: Names all of its content.
        manifest: The content of ``manifest.json``.
        size: Bytes of the archive, or of all files.
    """

    bundle: Path
    manifest_sha256: str
    manifest: Mapping[str, Any]
    size: int

    def to_json(self) -> dict[str, Any]:
        """The document of ``bundle --json``."""
        return {
            "schema": SCHEMA,
            "bundle": str(self.bundle),
            "manifest_sha256": self.manifest_sha256,
            "bytes": self.size,
            "manifest": dict(self.manifest),
        }


def write_bundle(
    models: Sequence[Path | str],
    images: Sequence[ImageFile],
    output: Path,
    options: BundleOptions | None = None,
) -> BundleReport:
    """Write a bundle: the models, how images become their input, golden inputs and outputs, and what runs them.

    Every ONNX model is run here and held against the first float one; see :mod:`exporter.bundle.outputs`.

    Args:
        models: ONNX files, and engines with the documents beside them. What each is for, its metadata tell.
        images: Of which the goldens are chosen, from :func:`calibration.listing.find_images`.
        output: A folder, or a file that ends in ``.tar.zst``. The same models and images give the same bytes. A bundle
            that is there already is replaced by a whole one, or not at all.
        options: The rest; ``None``: the defaults.

    Raises:
        GateError: A model does not compute what the reference does; an earlier bundle is then at ``NAME.previous``.
        InputError: A file that cannot be used, or models that do not belong together.
        DataError: Images that cannot be used.
        UnavailableError: A package or disk space is missing.
    """
    options = options or BundleOptions()
    extra = [path for path in (options.labels, options.license) if path is not None]
    check_place(output, [Path(model) for model in models] + extra)
    if is_archive(output):
        require_zstd()
    members = read_members(models)
    contract = contract_for([member.opening for member in members], options.preset, {})
    license_text = _license(options.license)
    with staged(output) as folder:
        goldens, tensors = golden_images(sample(images, options.images, options.seed), contract)
        reference = reference_of(members)
        outputs = compute_outputs(members, reference, tensors, contract)
        labels = _labels(options.labels, members, outputs)
        dla = _write_models(folder, members, options.dla)
        _write_goldens(folder, goldens, tensors, outputs, reference)
        write_file(folder, PREPROCESSING, manifest_bytes(contract.to_json()))
        if labels:
            write_file(folder, LABELS, "".join(f"{label}\n" for label in labels).encode())
        write_file(folder, LICENSE, license_text.encode())
        runner = Path(exporter.bundle.runner.__file__)
        copy_file(runner, folder, RUNNER)
        (folder / RUNNER).chmod(0o755)
        document = _document(members, reference, outputs, goldens, contract, labels, options, dla)
        write_file(folder, README, readme(document).encode())
        document["files"] = _files(folder)
        data = manifest_bytes(document)
        write_file(folder, MANIFEST, data)
        write_file(folder, MANIFEST_SHA256, checksum_bytes(data))
        size = len(data) + sum(entry["bytes"] for entry in document["files"])
        if is_archive(output):
            pack(folder, output)
            size = output.stat().st_size
    return BundleReport(output, hashlib.sha256(data).hexdigest(), document, size)


def _license(path: Path | None) -> str:
    if path is None:
        return NO_LICENSE
    try:
        if path.stat().st_size > _LARGEST_LICENSE:
            raise InputError(f"--license {path} has more than {_LARGEST_LICENSE >> 20} MiB: give the text alone")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--license {path} cannot be read as text: {error}") from error


def _labels(path: Path | None, members: Sequence[Member], outputs: Mapping[str, Outputs]) -> tuple[str, ...]:
    labels = read_labels(path) if path is not None else labels_of(members)
    classes = _classes(outputs)
    if labels and len(labels) != classes:
        raise InputError(
            f"there are {len(labels)} class names, and the models tell {classes} apart: give --labels FILE"
        )
    return labels


def _classes(outputs: Mapping[str, Outputs]) -> int:
    return int(next(iter(outputs.values())).logits.shape[1])


def _write_models(folder: Path, members: Sequence[Member], dla: bool) -> dict[str, dict[str, str]]:
    found = {}
    for member in members:
        copy_file(member.file, folder, member.path)
        for name, source in member.others.items():
            copy_file(source, folder, name)
        if dla and member.kind == "onnx" and member.target == "tensorrt" and member.precision == "int8":
            files = dla_files(member)
            names = {"file": f"models/{member.id}/dla.onnx", "scales": f"models/{member.id}/dla.scales.json"}
            write_file(folder, names["file"], files.model)
            write_file(folder, names["scales"], files.scales)
            found[member.id] = names
    return found


def _write_goldens(
    folder: Path, goldens: Sequence[Golden], tensors: Floats, outputs: Mapping[str, Outputs], reference: Member
) -> None:
    write_file(folder, INPUT, npy_bytes(tensors))
    write_file(folder, REFERENCE, npy_bytes(outputs[reference.id].logits))
    for index, golden in enumerate(goldens):
        if golden.png is not None:
            write_file(folder, pixels_path(index), golden.png)
    for name, found in outputs.items():
        write_file(folder, _golden_path(name), npy_bytes(found.logits))


def _golden_path(model: str) -> str:
    return f"goldens/outputs/{model}.npy"


def _document(
    members: Sequence[Member],
    reference: Member,
    outputs: Mapping[str, Outputs],
    goldens: Sequence[Golden],
    contract: Preprocessing,
    labels: Sequence[str],
    options: BundleOptions,
    dla: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "made_by": {
            "resnet-export": __version__,
            **{name: metadata.version(name) for name in _VERSIONS},
            "architecture": platform.machine(),
        },
        "classes": _classes(outputs),
        "labels": LABELS if labels else None,
        "preprocessing": PREPROCESSING,
        "preprocessing_sha256": contract.sha256(),
        "license": {"file": LICENSE, "given": options.license is not None},
        "goldens": {
            "input": INPUT,
            "reference": REFERENCE,
            "reference_model": reference.id,
            "images": [
                {"name": golden.name, "label": golden.label, "pixels": pixels_path(index) if golden.png else None}
                for index, golden in enumerate(goldens)
            ],
        },
        "models": [_model(member, outputs[member.id], dla.get(member.id)) for member in members],
    }


def _model(member: Member, outputs: Outputs, dla: Mapping[str, str] | None) -> dict[str, Any]:
    inputs, results = specs_of(member)
    return {
        "id": member.id,
        "kind": member.kind,
        "target": member.target,
        "precision": member.precision,
        "file": member.path,
        "others": sorted(member.others),
        "sha256": member.opening.sha256,
        "source": member.source.id if member.source else None,
        "inputs": [_spec(spec) for spec in inputs],
        "outputs": [_spec(spec) for spec in results],
        "golden": _golden_path(member.id),
        "golden_by": outputs.by,
        "tolerances": list(outputs.tolerances),
        "measured": list(outputs.measured),
        "dla": dict(dla) if dla else None,
        "provenance": dict(member.provenance),
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _files(folder: Path) -> list[dict[str, Any]]:
    """Every file that is there by now; the manifest and its hash come after."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries = [FileEntry(name, sha256_of(folder / name), (folder / name).stat().st_size) for name in names]
    return [entry.to_json() for entry in entries]
