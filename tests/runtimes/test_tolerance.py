from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from runtimes.errors import InputError
from runtimes.statistics import DifferenceStatistics, compare
from runtimes.tolerance import FP16_STEP_ULP, TOLERANCES, Tolerance, coarser, tolerance_for

BOUNDS = Tolerance(min_sqnr_db=50.0, min_decision_db=30.0, max_ulp=16.0, min_top1=0.9, reason="a test")
AT_THE_BOUNDS = DifferenceStatistics(
    n=10,
    finite=True,
    max_abs=1.0,
    mean_abs=0.5,
    max_rel=0.1,
    max_ulp=16.0,
    sqnr_db=50.0,
    decision_sqnr_db=30.0,
    cosine=0.99,
    top1_agreement=0.9,
    worst_row=3,
)


def test_statistics_that_equal_their_bounds_pass():
    assert BOUNDS.judge(AT_THE_BOUNDS) == (True, "")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"sqnr_db": math.nextafter(50.0, 0.0)}, "SQNR is 50 dB, at least 50 dB is required"),
        ({"sqnr_db": 43.1}, "SQNR is 43.1 dB, at least 50 dB is required"),
        ({"max_ulp": 17.5}, "sample 3 differs by 17.5 ULP of the largest output, at most 16 is allowed"),
        ({"max_ulp": None}, "sample 3 differs by inf ULP"),
        ({"top1_agreement": 0.8}, "top-1 agrees on 0.8 of the samples, at least 0.9 is required"),
        ({"sqnr_db": math.nan}, "SQNR is nan dB"),
    ],
)
def test_one_step_beyond_a_bound_fails_with_bound_measured_and_allowed(change, finding):
    passed, text = BOUNDS.judge(replace(AT_THE_BOUNDS, **change))
    assert not passed
    assert finding in text


def test_every_missed_bound_is_told():
    worse = replace(AT_THE_BOUNDS, sqnr_db=1.0, max_ulp=99.0, top1_agreement=0.0)
    assert BOUNDS.judge(worse)[1].count(";") == 2


def test_a_field_that_is_none_bounds_nothing():
    only_sqnr = replace(BOUNDS, max_ulp=None, min_top1=None)
    assert only_sqnr.judge(replace(AT_THE_BOUNDS, max_ulp=1e9, top1_agreement=0.0)) == (True, "")


def test_statistics_that_are_not_finite_never_pass():
    harmless = replace(AT_THE_BOUNDS, finite=False, sqnr_db=300.0, max_ulp=0.0, top1_agreement=1.0)
    assert BOUNDS.judge(harmless) == (False, "sample 3 holds NaN or Inf")


def test_a_tolerance_that_bounds_nothing_cannot_be_made():
    with pytest.raises(ValueError, match="without a bound"):
        Tolerance(None, None, None, None, "anything goes")


def test_every_row_of_the_table_is_json_with_a_reason():
    for row in TOLERANCES.values():
        assert len(row.reason) > 80
        assert json.loads(json.dumps(row.to_json(), allow_nan=False))["min_sqnr_db"] == row.min_sqnr_db


@pytest.mark.parametrize(("runtime", "precision"), [("eager", "fp32"), ("onnxruntime", "fp32")])
def test_fp32_rows_demand_at_least_100_db(runtime, precision):
    assert tolerance_for(runtime, precision).min_sqnr_db == 100.0


def test_an_unknown_row_is_wrong_usage_and_the_known_ones_are_listed():
    with pytest.raises(InputError, match=r"onnxruntime int3: expected one of .*onnxruntime fp32.*onnxruntime fp16"):
        tolerance_for("onnxruntime", "int3")


def test_one_float16_step_is_what_numpy_says():
    assert float(np.spacing(np.float16(4.0))) / float(np.spacing(np.float32(4.0))) == FP16_STEP_ULP


def test_float16_rounding_passes_the_fp16_row_and_fails_the_fp32_row():
    reference = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    stats = compare(reference, reference.astype(np.float16))
    assert tolerance_for("onnxruntime", "fp16").judge(stats) == (True, "")
    assert not tolerance_for("onnxruntime", "fp32").judge(stats)[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_five_percent_on_one_class_fails_every_row(precision):
    reference = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    wrong = reference.copy()
    wrong[:, 3] *= 1.05
    assert not tolerance_for("onnxruntime", precision).judge(compare(reference, wrong))[0]


def test_a_pair_is_judged_by_the_row_of_the_coarser_side():
    fp32, fp16, int8 = (tolerance_for("onnxruntime", name) for name in ("fp32", "fp16", "int8"))
    assert coarser(int8, fp16) is int8
    assert coarser(fp32, fp32) is fp32
    assert replace(coarser(fp32, int8), reason=int8.reason) == int8
