import hashlib
import math

import numpy as np
import pytest
from scipy.special import ndtri

from castor_traces import ieee_math


def worst_relative_error(ours, theirs):
    return float(np.max(np.abs(ours / theirs - 1.0)))


@pytest.mark.parametrize(
    "x",
    [
        np.exp(np.linspace(-744.0, 709.0, 100_001)),
        np.linspace(0.5, 2.0, 100_000),
        1.0 + np.array([s * 10.0**-e for e in range(1, 16) for s in (1, -1, 0.3, -0.3)]),
        np.array([5e-324, 2.2250738585072014e-308, 1.7976931348623157e308]),
    ],
    ids=["whole-range", "around-one", "near-one", "extremes"],
)
def test_log_is_accurate(x):
    x = x[x != 1.0]
    assert worst_relative_error(ieee_math.log(x), np.log(x)) < 1e-15


def test_log_of_one_is_zero():
    assert ieee_math.log(np.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_log_refuses_what_has_no_finite_logarithm(bad):
    with pytest.raises(ValueError, match="above zero"):
        ieee_math.log(np.array([1.0, bad]))


def test_exp_is_accurate():
    x = np.concatenate([np.linspace(-708.0, 709.0, 100_001), np.linspace(-1.0, 1.0, 10_000)])
    assert worst_relative_error(ieee_math.exp(x), np.exp(x)) < 1e-15


def test_exp_saturates_without_a_warning():
    assert ieee_math.exp(np.array([-1e9, 0.0, 1e9, np.inf])).tolist() == [0.0, 1.0, np.inf, np.inf]


def test_exp_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        ieee_math.exp(np.array([math.nan]))


def test_normal_quantile_is_accurate_in_the_centre_and_in_both_tails():
    centre = np.linspace(1e-4, 1 - 1e-4, 100_000)  # an even count: 0.5 itself is not in it
    left = 10.0 ** np.linspace(-300, -1, 10_000)
    right = 1.0 - 2.0 ** -np.arange(2.0, 53.0)
    for p in (centre, left, right):
        assert worst_relative_error(ieee_math.normal_quantile(p), ndtri(p)) < 1e-14
    assert ieee_math.normal_quantile(np.array([0.5])).tolist() == [0.0]


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_normal_quantile_refuses_what_is_no_open_probability(bad):
    with pytest.raises(ValueError, match="strictly between"):
        ieee_math.normal_quantile(np.array([0.5, bad]))


def test_gamma_is_accurate():
    for x in [0.001, 0.01, 0.5, 1.0, 1.5, 2.0, 3.7, 10.0, 19.5, 20.0, 29.9, 30.0]:
        assert ieee_math.gamma(x) == pytest.approx(math.gamma(x), rel=1e-13)


@pytest.mark.parametrize("bad", [0.0, -1.0, 31.0, math.nan])
def test_gamma_names_its_range(bad):
    with pytest.raises(ValueError, match=r"0\.001 to 30"):
        ieee_math.gamma(bad)


def test_bits_are_the_same_everywhere():
    """The bits themselves: a machine that fuses or reorders operations shows here."""
    x = np.ldexp(np.arange(1.0, 20_000.0), -11)
    p = (np.arange(19_999) + 0.5) / 19_999
    digest = hashlib.sha256()
    for values in (ieee_math.log(x), ieee_math.exp(-x), ieee_math.normal_quantile(p)):
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    assert digest.hexdigest() == "bbf34fce5f02cbd91e4220113679823f1b0eb45b1152f8d982569067c984e950"
