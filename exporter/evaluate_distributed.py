"""Evaluation on the machines of a cluster: the report of one process, apart from the times.

Every worker opens the models itself, from copies of their files that are sent once. Counts of batches are merged in
the order of the list, and the batches are those that one process makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from calibration.audit import content_hashes
from calibration.cluster import Cluster, other_processors, over_shards
from calibration.images import BadFile
from calibration.listing import ImageFile, sample
from calibration.preprocess import Preprocessing
from calibration.shards import Gathered, Reading, Shard, on_this_machine, read_shard, shards
from exporter.evaluate import EvaluateOptions, EvaluateReport, data_facts, report_of
from exporter.labelled import with_labels
from exporter.opening import Opening
from exporter.sent_models import SentModel, sent
from runtimes.base import Runtime
from runtimes.errors import InputError
from runtimes.evaluation import Tally, evaluated, tally


@dataclass(frozen=True)
class Evaluations:
    """One shard.

    Attributes:
        batches: For each batch the places of its images in the shard, and a tally for each model.
        hashes: SHA-256 of the images, in the order of the batches.
        reading: What was met on the way.
    """

    batches: tuple[tuple[tuple[int, ...], tuple[Tally, ...]], ...]
    hashes: tuple[str, ...]
    reading: Reading


@dataclass(frozen=True)
class EvaluationJob:
    """Run models over labelled images: a :class:`calibration.cluster_worker.Job`.

    Attributes:
        models: The first is what the others are compared with.
        contract: How the pixels become a tensor.
        batch: Files to a batch.
        classes: How many classes the labels tell apart, where that is known.
        keep: Changed images that are listed, at most.
    """

    models: tuple[SentModel, ...]
    contract: Preprocessing
    batch: int
    classes: int | None
    keep: int

    @property
    def modules(self) -> tuple[str, ...]:
        """What decides the numbers, and which images can be decoded."""
        return ("numpy", "PIL", "onnx", *sorted({each for model in self.models for each in model.modules}))

    def open(self) -> Callable[[Shard], Evaluations]:
        """All models on their runtimes."""
        with ExitStack() as stack:
            runtimes = [model.open(stack) for model in self.models]
            stack.pop_all()  # they stay open for as long as the process lives
        return lambda shard: self._evaluate(runtimes, shard)

    def _evaluate(self, runtimes: Sequence[Runtime], shard: Shard) -> Evaluations:
        reading = Reading()
        found: list[tuple[tuple[int, ...], tuple[Tally, ...]]] = []
        with on_this_machine(shard, reading) as local:
            for tensor, places in read_shard(shard, local, self.contract, self.batch, reading):
                labels = np.array([shard.files[place].label for place in places], np.int64)
                batch = (tensor, labels, shard.start + np.array(places, np.int64))
                found.append((tuple(places), tuple(tally(runtimes, batch, classes=self.classes, keep=self.keep))))
            used = [local[place] for places, _ in found for place in places]
            hashes = content_hashes(used)
            return Evaluations(tuple(found), tuple(hashes[file] for file in used), reading)


def evaluate_on(
    cluster: Cluster,
    models: Sequence[Opening],
    listing: Sequence[ImageFile],
    contract: Preprocessing,
    options: EvaluateOptions | None = None,
    *,
    path: str,
    class_names: Sequence[str] = (),
    ship: bool = False,
    on_bad: Callable[[BadFile], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EvaluateReport:
    """As :func:`exporter.evaluate.evaluate_models`, on the workers of a cluster.

    Args:
        cluster: From :func:`calibration.cluster.connected`.
        models: On runtimes that compute on a CPU; one that names no threads gets the cluster's.
        listing: All images of the set.
        contract: How they become the models' input.
        options: How; ``workers`` is not looked at.
        path: Where the images come from, for the report.
        class_names: The models' classes in order, where they are known.
        ship: Send the images too, for workers that cannot read them under the same path.
        on_bad: Hears of unusable images.
        on_note: Hears of what the user should know of the machines.
        on_progress: Hears of the number of images done.

    Raises:
        InputError: There is no model, or one computes on a GPU.
        UnavailableError: A worker lacks something: the images, the right versions, memory.
        ResnetExportError: As :func:`exporter.evaluate.evaluate_models`.
    """
    if not models:
        raise InputError("there is no model to evaluate: give at least one")
    options = options or EvaluateOptions()
    labelled = with_labels(listing, class_names)
    files = sample(labelled.files, options.images or None, options.seed)
    job = EvaluationJob(
        tuple(sent(model, cluster.threads) for model in models), contract, options.batch, labelled.classes, options.keep
    )
    total = _Total([Tally(model.runtime.name, options.keep) for model in models])
    gathered = Gathered(files, options.max_bad, on_bad)
    with closing(over_shards(cluster, job, shards(files, options.batch, ship=ship))) as answers:
        for shard, answer in answers:
            gathered.note(shard, answer.value.reading, answer.host)
            total.hosts[answer.host] = answer.processor
            total.take(shard, answer.value)
            if on_progress:
                on_progress(len(total.files))
            if total.all_failed:
                break
        else:
            gathered.end()
    if (mixed := other_processors(total.hosts)) and on_note:
        on_note(mixed)
    data = data_facts(path, total.files, total.hashes, contract)
    subjects = [model.subject() for model in models]
    return report_of(subjects, evaluated(total.tallies), files, data, options.max_drop, labelled)


class _Total:
    """All batches so far, in order."""

    def __init__(self, tallies: list[Tally]) -> None:
        self.tallies = tallies
        self.files: list[ImageFile] = []
        self.hashes: dict[ImageFile, str] = {}
        self.hosts: dict[str, str] = {}

    @property
    def all_failed(self) -> bool:
        return all(each.failed for each in self.tallies)

    def take(self, shard: Shard, found: Evaluations) -> None:
        hashes = iter(found.hashes)
        for places, tallies in found.batches:
            for mine, other in zip(self.tallies, tallies, strict=True):
                mine.merge(other)
            for place in places:
                self.files.append(shard.files[place])
                self.hashes[shard.files[place]] = next(hashes)
            if self.all_failed:  # where one process would have stopped
                return
