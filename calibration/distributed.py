"""Calibration on the machines of a cluster: shards of images in, the ranges of one process out, byte for byte.

Observers are exact and know no order (:mod:`calibration.observers`), and the batches of a shard are those that one
process makes (:mod:`calibration.shards`); so neither the number of workers nor the death of some changes the ranges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import onnx

from calibration.audit import ImageAudit, content_hashes, list_sha256
from calibration.calibrate import Calibration
from calibration.cluster import Cluster, other_processors, over_shards
from calibration.collect import Collector, Progress, batch_size, tool_versions
from calibration.graph import Network
from calibration.inputs import FEWEST_IMAGES, check_inputs, image_size, too_few, too_many
from calibration.listing import ImageFile
from calibration.observers import Observer
from calibration.preprocess import Preprocessing
from calibration.ranges import Ranges
from calibration.shards import Gathered, Reading, Shard, on_this_machine, read_shard, shards

_CPU: Final = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Observed:
    """One shard.

    Attributes:
        tensors: Observer by tensor name; empty where the shard has no usable image.
        audits: Of each batch: means are not free of order, and are merged as one process merges them.
        places: Of the images that were used, in the shard.
        hashes: SHA-256 of each of them.
        reading: What was met on the way.
        seconds: Of running and observing.
    """

    tensors: Mapping[str, Observer]
    audits: tuple[ImageAudit, ...]
    places: tuple[int, ...]
    hashes: tuple[str, ...]
    reading: Reading
    seconds: float


@dataclass(frozen=True)
class CalibrationJob:
    """Observe a network: a :class:`calibration.cluster_worker.Job`.

    Attributes:
        model: The network as ONNX bytes.
        sha256: Of its file.
        contract: How the pixels become a tensor.
        batch: Files to a batch.
        threads: Of one operator.
    """

    model: bytes
    sha256: str
    contract: Preprocessing
    batch: int
    threads: int

    @property
    def modules(self) -> tuple[str, ...]:
        """What decides the numbers, and which images can be decoded."""
        return ("numpy", "onnx", "onnxruntime", "PIL")

    def open(self) -> Callable[[Shard], Observed]:
        """The network in a session."""
        network = Network(onnx.load_model_from_string(self.model), self.sha256)
        collector = Collector(network, providers=_CPU, threads=self.threads)
        return lambda shard: self._observe(collector, shard)

    def _observe(self, collector: Collector, shard: Shard) -> Observed:
        collector.restart()  # a shard before this one may have failed half-way
        reading, audits, used, seconds = Reading(), list[ImageAudit](), list[int](), 0.0
        with on_this_machine(shard, reading) as local:
            for tensor, places in read_shard(shard, local, self.contract, self.batch, reading):
                audit = ImageAudit()
                audit.add(tensor, [shard.files[place] for place in places])
                audits.append(audit)
                used.extend(places)
                begin = time.perf_counter()
                collector.update(tensor)
                seconds += time.perf_counter() - begin
            hashes = content_hashes([local[place] for place in used])
            return Observed(
                collector.restart() if used else {},
                tuple(audits),
                tuple(used),
                tuple(hashes[local[place]] for place in used),
                reading,
                seconds,
            )


def calibrate_on(
    cluster: Cluster,
    network: Network,
    files: Sequence[ImageFile],
    contract: Preprocessing,
    *,
    max_bad: float = 0.01,
    ship: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """As :func:`calibration.calibrate.calibrate`, on the workers of a cluster; nothing is kept of an interrupted run.

    Args:
        cluster: From :func:`calibration.cluster.connected`.
        network: The float model; it is sent to the workers, whose ONNX Runtime runs it on their CPUs.
        files: At least two images.
        contract: How the pixels become a tensor.
        max_bad: Fraction of ``files``, from 0 to 1, that may be bad.
        ship: Send the images too, for workers that cannot read them under the same path.
        progress: Hears of the number of images done: at the start, and after each shard, in order.

    Returns:
        The ranges, which are those of one process, and what was met on the way. ``seconds`` are the workers' together.

    Raises:
        DataError: Fewer than two images, too many bad ones, or images or activations that cannot be used.
        InputError: The contract does not fit the network.
        GraphError: There is nothing to observe, or ONNX Runtime cannot load the model.
        UnavailableError: A worker lacks something: the images, the right versions, memory.
    """
    check_inputs(network, files, contract)
    batch = batch_size(network, *image_size(network, files, contract))
    job = CalibrationJob(network.model.SerializeToString(), network.sha256, contract, batch, cluster.threads)
    total = _Total(files, max_bad)
    told = progress or (lambda _: None)
    told(0)
    with closing(over_shards(cluster, job, shards(files, batch, ship=ship))) as answers:
        for shard, answer in answers:
            total.take(shard, answer.value, answer.host)
            total.hosts[answer.host] = answer.processor
            told(len(total.files))
    return total.result(network, contract)


class _Total:
    """All shards so far."""

    def __init__(self, files: Sequence[ImageFile], max_bad: float) -> None:
        self.files: list[ImageFile] = []
        self.hosts: dict[str, str] = {}
        self._gathered = Gathered(files, max_bad, too_many=lambda bad, _, allowed: too_many(bad, len(files), allowed))
        self._tensors: dict[str, Observer] = {}
        self._audit = ImageAudit()
        self._hashes: dict[ImageFile, str] = {}
        self._seconds = 0.0

    def take(self, shard: Shard, found: Observed, host: str) -> None:
        self._gathered.note(shard, found.reading, host)
        for name, observer in found.tensors.items():
            self._tensors[name] = self._tensors.get(name, Observer()).merged(observer)
        for audit in found.audits:
            self._audit.merge(audit)
        used = [shard.files[place] for place in found.places]
        self.files.extend(used)
        self._hashes.update(zip(used, found.hashes, strict=True))
        self._seconds += found.seconds

    def result(self, network: Network, contract: Preprocessing) -> Calibration:
        self._gathered.end()
        if len(self.files) < FEWEST_IMAGES:
            raise too_few(len(self.files))
        self._audit.add_contents(self.files, self._hashes)
        digest = list_sha256(self.files, self._hashes)
        ranges = Ranges(network.sha256, contract, len(self.files), digest, self._tensors, tool_versions())
        mixed = other_processors(self.hosts)
        warnings = (*self._audit.warnings(), *((mixed,) if mixed else ()))
        return Calibration(ranges, warnings, tuple(self._gathered.bad), tuple(self.files), self._seconds)
