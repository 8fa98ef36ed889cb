"""What an engine runs: its layer table, held against the network that it was built from.

TensorRT tells it of an engine that is loaded, on a GPU. So the table is made where the engine is built, if there is a
GPU, and otherwise where the engine is to run: the network that the table is held against lies beside the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from runtimes.errors import GraphError, InputError, first_line
from runtimes.reading import read_model
from runtimes.tensorrt.device import DeviceSearch, find_devices
from runtimes.tensorrt.examine import device_of, examine
from runtimes.tensorrt.flavour import Flavour, flavour
from runtimes.tensorrt.inspect import EngineLayers, read_layers
from runtimes.tensorrt.inspect_network import NetworkNode, network_nodes
from runtimes.tensorrt.inspect_summary import summary
from runtimes.tensorrt.options import BuildOptions, Built
from runtimes.tensorrt.plan import read_header
from runtimes.tensorrt.sidecar import (
    check_device,
    check_host_code,
    check_version,
    dla_core_of,
    read_sidecar,
    sidecar_path,
)


@dataclass(frozen=True)
class LayerReport:
    """The layers of an engine, as JSON values.

    Attributes:
        layers: A row per layer; ``None`` where TensorRT could not be asked.
        summary: What the table says of the network; ``None`` without a table or a network.
        network: The nodes that it is held against; ``None`` where they are not known.
        reason: Why there is no table; ``None`` where there is one.
    """

    layers: Sequence[Mapping[str, Any]] | None
    summary: Mapping[str, Any] | None
    network: Sequence[Mapping[str, Any]] | None
    reason: str | None

    def table(self) -> dict[str, Any]:
        """What lies beside an engine besides the summary."""
        return {"layers": self.layers, "no_layers": self.reason, "network": self.network}

    def to_json(self) -> dict[str, Any]:
        """The document of ``layers --json``."""
        return {"summary": self.summary, "layers": self.layers}


def layers_of(
    built: Built,
    label: str,
    found: Flavour,
    search: DeviceSearch,
    network: Sequence[NetworkNode],
    options: BuildOptions,
) -> LayerReport:
    """The layers of an engine that was just built; never raises, as the engine is good without the table.

    Args:
        built: The engine. It is trusted with the program that a version-compatible one brings: it was made here.
        label: What it is called in messages.
        found: What built it.
        search: The GPUs of this machine.
        network: Nodes that it was built from.
        options: What was asked for.
    """
    targets = built.targets
    rows = [asdict(node) for node in network]
    here = ["{}.{}".format(*device.compute_capability) for device in search.devices]
    if targets and here and here[0] not in targets:
        return LayerReport(None, None, rows, f"it is for {', '.join(targets)}, and the GPU here is {here[0]}")
    try:
        table = examine(
            built.plan, found, search, label, host_code=options.version_compatible, dla_core=options.dla_core
        )
        return _report(table, network)
    except Exception as error:  # noqa: BLE001  (a build of an hour is not lost for a table)
        return LayerReport(None, None, rows, first_line(error, limit=1000))


def read_layer_report(path: Path, model: Path | None = None, *, host_code: bool = False) -> LayerReport:
    """The layers of an engine, or of the layer information that trtexec wrote.

    Args:
        path: Engine, or JSON of ``trtexec --exportLayerInfo``.
        model: The ONNX file that it was built from; ``None``: what lies beside the engine tells its nodes.
        host_code: Whether a version-compatible engine may run the program that it brings: whoever made it is trusted.

    Raises:
        InputError: The file is neither, or the engine is of another model, version or GPU, or not trusted.
        UnavailableError: There is no table beside the engine, and no GPU to ask.
        GraphError: TensorRT tells nothing of the layers.
    """
    data = _bytes(path)
    given = read_model(model, "give the file that the engine was built from") if model else None
    network = network_nodes(given[0]) if given else None
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _report(read_layers(data), network)
    document = read_sidecar(path, sha256(data).hexdigest()) or {}
    header = read_header(data, str(path), document)
    if given and document.get("source_sha256") not in (None, given[1]):
        raise InputError(f"{path} was not built from {model}: its sidecar names another model's sha256")
    if network is None:
        network = _stored_network(path, document)
    if document.get("layers"):
        return LayerReport(document["layers"], document.get("summary"), document.get("network"), None)
    search, label = find_devices(), str(path)
    place = device_of(search, label)
    found = flavour(header.package)
    check_version(header, document, found, label)
    check_device(document, place, label)
    check_host_code(document, host_code, label, "--trust-host-code")
    table = examine(data, found, search, label, host_code=host_code, dla_core=dla_core_of(document))
    return _report(table, network)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _stored_network(path: Path, document: Mapping[str, Any]) -> tuple[NetworkNode, ...] | None:
    rows = document.get("network")
    if rows is None:
        return None
    try:
        return tuple(NetworkNode(**row) for row in rows)
    except TypeError as error:
        raise GraphError(
            f"{sidecar_path(path)} is damaged: its network is not a list of nodes; build the engine again"
        ) from error


def _report(table: EngineLayers, network: Sequence[NetworkNode] | None) -> LayerReport:
    rows = table.to_json()["layers"]
    if network is None:
        return LayerReport(rows, None, None, None)
    return LayerReport(rows, summary(table, network).to_json(), [asdict(node) for node in network], None)
