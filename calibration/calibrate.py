"""Images and a network in, ranges out; what was interrupted goes on where it was.

::

    files --worker processes--> batches --this thread: audit--> --a thread of its own: run and observe--> ranges

A batch is decoded while the one before it is run. Observing has a thread of its own for a second reason: Ctrl+C reaches
the main thread alone, so it never cuts a batch in half, and what is kept of an interrupted run is whole batches.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from calibration.audit import ImageAudit, list_sha256
from calibration.collect import Collector, Progress, batch_size, tool_versions
from calibration.decoding import Tensor
from calibration.graph import Network
from calibration.images import BadFile, batches, worker_count
from calibration.inputs import FEWEST_IMAGES, check_inputs, image_size, lenient_hashes, too_few, too_many
from calibration.listing import ImageFile
from calibration.preprocess import Preprocessing
from calibration.ranges import Ranges
from calibration.resume import Conditions, Start, read_state, write_state
from runtimes.errors import DataError

# What an interrupted run may lose, where the process is killed rather than asked to end.
_SAVE_SECONDS: Final = 30.0

_Batches = Generator[tuple[Tensor, list[ImageFile]], None, None]


@dataclass(frozen=True)
class Calibration:
    """Ranges, and what was met on the way to them.

    Attributes:
        ranges: Of all images that could be used.
        warnings: What the user should know, one line each.
        bad: Files that were skipped.
        files: Files that were used, in order.
        seconds: Of running the network and observing it; those of an earlier run that was gone on with are not in it.
    """

    ranges: Ranges
    warnings: tuple[str, ...]
    bad: tuple[BadFile, ...]
    files: tuple[ImageFile, ...]
    seconds: float


def calibrate(
    network: Network,
    files: Sequence[ImageFile],
    contract: Preprocessing,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int | None = None,
    workers: int | None = None,
    max_bad: float = 0.01,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Observe a network over images, in one pass that serves every method and every target.

    Args:
        network: The float model.
        files: At least two images; they are read twice, once for their hashes.
        contract: How the pixels become a tensor.
        providers: ONNX Runtime's execution providers, first choice first.
        threads: Threads of one operator; ``None``: one per core.
        workers: Processes that decode; 0: none; ``None``: as many as are worth it. See
            :func:`calibration.images.batches`, which says what a script has to do for them.
        max_bad: Fraction of ``files``, from 0 to 1, that may be bad.
        state: Where an interrupted run leaves what it has, every half minute and on Ctrl+C. A later call with the same
            model, contract, images, batch, providers and tool versions goes on from there, to ranges that are the
            same to the last byte; it decodes the images that are done again, for the audit, but does not run them.
            That of something else is not used, with a warning. The file is gone once the ranges are complete.
            ``None``: nothing is kept, and nothing is gone on with.
        progress: Hears of the number of images done: where the run starts, and after each batch.

    Returns:
        The ranges, and what was met on the way.

    Raises:
        DataError: Fewer than two images, too many bad ones, images or activations that cannot be used, or ``state``
            is a file of another kind.
        InputError: The contract does not fit the network, or a number is out of range.
        GraphError: There is nothing to observe, or ONNX Runtime cannot load the model.
        UnavailableError: ONNX Runtime, a provider or processes are missing.
    """
    check_inputs(network, files, contract)
    size = image_size(network, files, contract)
    hashes = lenient_hashes(files)
    conditions = Conditions(
        network.sha256, contract, list_sha256(files, hashes), batch_size(network, *size), tuple(providers),
        tool_versions(),
    )  # fmt: skip
    start = read_state(state, conditions) if state is not None else Start()
    collector = Collector(network, providers=providers, threads=threads, observers=start.tensors)
    run = _Run(collector, start, conditions, state, progress)
    bad: list[BadFile] = []
    found = batches(
        files, contract, conditions.batch, max_bad=max_bad, on_bad=bad.append,
        workers=worker_count(files) if workers is None else workers,
    )  # fmt: skip
    try:
        run.through(cast("_Batches", found))
    except DataError as error:
        if len(bad) == len(files) or len(bad) / len(files) > max_bad:
            raise too_many(bad, len(files), max_bad) from error
        raise
    if len(run.files) < FEWEST_IMAGES:
        raise too_few(len(run.files))
    run.audit.add_contents(run.files, hashes)
    if state is not None:
        state.unlink(missing_ok=True)
    return Calibration(
        Ranges(
            network.sha256, contract, run.done, list_sha256(run.files, hashes), collector.observers, conditions.tools
        ),
        (*run.notes, *run.audit.warnings()),
        tuple(bad),
        tuple(run.files),
        run.seconds,
    )


class _Run:
    """One pass over the batches.

    Attributes:
        audit: Of the images so far.
        files: Of the batches so far.
        notes: What the user should know.
        seconds: Of running and observing.
    """

    def __init__(
        self, collector: Collector, start: Start, conditions: Conditions, state: Path | None, progress: Progress | None
    ) -> None:
        self.audit = ImageAudit()
        self.files: list[ImageFile] = []
        self.notes = [start.note] if start.note else []
        self.seconds = 0.0
        self._collector = collector
        self._start = start.images
        self._conditions = conditions
        self._state = state
        self._progress = progress or (lambda _: None)
        self._saved = time.monotonic()
        self._whole = True  # whether the statistics are those of whole batches
        self._running: Future[None] | None = None

    @property
    def done(self) -> int:
        """Number of images in the statistics; true between two batches."""
        return next(iter(self._collector.observers.values())).images

    def through(self, found: _Batches) -> None:
        """Observe all batches but those that are done already."""
        with ThreadPoolExecutor(1, "calibrate") as runner, closing(found):
            try:
                for tensor, files in found:
                    self.audit.add(tensor, files)
                    self.files.extend(files)
                    if len(self.files) <= self._start:
                        continue
                    self._settle(len(self.files) - len(files))
                    self._running = runner.submit(self._update, tensor)
                self._settle(len(self.files))
            except KeyboardInterrupt:
                runner.shutdown(wait=True)  # the batch that is under way is soon done, and counts
                self._save()
                raise

    def _update(self, tensor: Tensor) -> None:
        begin = time.perf_counter()
        self._whole = False
        self._collector.update(tensor)
        self._whole = True
        self.seconds += time.perf_counter() - begin

    def _settle(self, expected: int) -> None:
        """Wait for the batch under way."""
        if self._running is not None:
            self._running.result()
            self._running = None
        if self.done != expected:
            raise DataError(
                f"the unfinished calibration {self._state} ends after {self._start} images, which is not the end of "
                f"a batch of these: delete it"
            )
        self._progress(self.done)
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        if self._state is None or not self._whole or self.done == self._start:
            return
        try:
            write_state(self._state, self._conditions, self.done, self._collector.observers)
        except OSError as error:
            # The calibration itself goes well, and may end well.
            reason = error.strerror or error
            self.notes.append(f"{self._state} cannot be written ({reason}): an interrupted run will start anew")
            self._state = None
        self._saved = time.monotonic()
