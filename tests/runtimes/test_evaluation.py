"""Several runtimes over one stream."""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.errors import DataError, GraphError, InputError, TensorError
from runtimes.evaluation import evaluate
from tests.runtimes.models import FunctionRuntime, images, linear, weights
from tests.runtimes.test_batching import FixedRuntime

EXACT = linear(weights())
COUNT = 11


def stream(size=4, count=COUNT, labels=None):
    data = images(count)
    known = EXACT(data).argmax(axis=1).astype(np.int64) if labels is None else np.asarray(labels)
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield data[part], known[part], np.arange(count)[part]


def run(*runtimes, batches=None, **options):
    for each in runtimes:
        each.__enter__()
    return evaluate(runtimes, stream() if batches is None else batches, **options)


def negated(batch):
    return -EXACT(batch)


def failing_at(call, function=EXACT, error=GraphError):
    calls = []

    def apply(batch):
        calls.append(batch)
        if len(calls) == call:
            raise error("out of memory")
        return function(batch)

    return apply


def test_the_first_runtime_is_the_reference_of_all_others():
    first, same, other = run(FunctionRuntime(EXACT), FunctionRuntime(EXACT), FunctionRuntime(negated))
    assert first.accuracy.top1 == 1.0
    assert first.changes is None
    assert (same.changes.changed, same.changes.mcnemar_p) == (0, 1.0)
    assert other.accuracy.top1 == 0.0
    assert (other.changes.changed, other.changes.only_reference_right) == (COUNT, COUNT)


@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_the_result_does_not_depend_on_how_the_images_are_batched(size):
    whole = run(FunctionRuntime(EXACT), FunctionRuntime(negated), batches=stream(COUNT), clock=lambda: 0)
    assert run(FunctionRuntime(EXACT), FunctionRuntime(negated), batches=stream(size), clock=lambda: 0) == whole


def test_a_model_of_a_fixed_batch_sees_every_image_once():
    _, fixed = run(FunctionRuntime(EXACT), FixedRuntime(3))
    assert fixed.accuracy.n == COUNT
    assert fixed.changes.changed == 0


def test_the_images_are_read_once_for_all_runtimes():
    read = []

    def counted():
        for batch in stream():
            read.append(len(batch[0]))
            yield batch

    progress: list[int] = []
    run(*(FunctionRuntime(EXACT) for _ in range(3)), batches=counted(), on_progress=progress.append)
    assert read == [4, 4, 3]
    assert progress == [4, 8, 11]


def test_a_runtime_that_fails_is_put_aside_with_its_error_and_the_others_go_on():
    first, broken, other = run(FunctionRuntime(EXACT), FunctionRuntime(failing_at(2)), FunctionRuntime(negated))
    assert broken.accuracy is broken.changes is None
    assert broken.error == "out of memory"
    assert (first.accuracy.n, other.accuracy.n, other.changes.n) == (COUNT, COUNT, COUNT)
    assert first.error is other.error is None


def test_without_its_reference_a_runtime_keeps_its_accuracy_and_is_compared_with_nothing():
    first, other = run(FunctionRuntime(failing_at(3)), FunctionRuntime(negated))
    assert first.accuracy is None
    assert other.accuracy.n == COUNT
    assert other.changes is None


def test_reading_ends_when_every_runtime_has_failed():
    read = []

    def counted():
        for batch in stream(1):
            read.append(1)
            yield batch

    results = run(FunctionRuntime(failing_at(1)), FunctionRuntime(failing_at(2)), batches=counted())
    assert [each.error for each in results] == ["out of memory"] * 2
    assert len(read) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_and_a_fault_of_the_program_are_nobodys_result(error):
    with pytest.raises(error):
        run(FunctionRuntime(failing_at(1, error=error)))


def test_runtimes_of_different_classes_are_refused_by_name():
    narrow = FunctionRuntime(lambda batch: EXACT(batch)[:, :3], name="narrow")
    with pytest.raises(TensorError, match="narrow tells 3 classes apart, function 5"):
        run(FunctionRuntime(EXACT), narrow)


def test_a_model_that_has_not_the_classes_of_the_labels_is_refused():
    with pytest.raises(TensorError, match="function tells 5 classes apart, the labels 7"):
        run(FunctionRuntime(EXACT), classes=7)


@pytest.mark.parametrize(("label", "message"), [(-1, "image 3 has no label"), (5, "image 3 has the label 5")])
def test_images_without_a_label_of_the_models_are_refused(label, message):
    labels = [0, 1, 2, label, *[0] * 7]
    with pytest.raises(DataError, match=message):
        run(FunctionRuntime(EXACT), batches=stream(labels=labels))


def test_nothing_to_run_or_to_run_on_is_refused():
    with pytest.raises(InputError, match="no runtime"):
        evaluate([], stream())
    with pytest.raises(DataError, match="no images"):
        run(FunctionRuntime(EXACT), batches=[])


def test_seconds_are_those_of_the_runs_alone():
    now = iter(range(0, 10**9, 10**6))  # every look at the clock is a millisecond after the last
    (result,) = run(FunctionRuntime(EXACT), clock=lambda: next(now))
    assert result.seconds == pytest.approx(0.003)


def test_not_a_number_is_never_right():
    def poisoned(batch):
        logits = EXACT(batch)
        logits[0, 0] = np.nan
        return logits

    (result,) = run(FunctionRuntime(poisoned))
    assert result.accuracy.top1 == pytest.approx(8 / 11)
    assert result.accuracy.not_finite == 3
