"""Elementary functions that give the same bits on every machine.

`numpy.log` and `numpy.exp` pick a routine by the processor's vector unit and differ between them by
the last bit; one such bit moves a failure by a nanosecond, and a generated trace is no longer the
same byte for byte. The functions here use only what IEEE 754 rounds correctly (`+ - * / sqrt`) and
what is exact (`frexp`, `ldexp`, `rint`), each as a NumPy operation of its own, so that no compiler
can fuse two of them. They are accurate to a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# ln 2 in two parts: the first has 32 significant bits, so that its product with an exponent of 11
# bits is exact.
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_LOG_SQRT_2PI = float.fromhex("0x1.d67f1c864beb5p-1")

# 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...): |s| < 0.172, so that twelve terms leave 2e-20.
_ATANH_TERMS = tuple(2.0 / (2 * k + 1) for k in range(1, 13))
# e^r - 1 - r = r^2 (1/2! + r/3! + ...): |r| < 0.347, so that degree 14 leaves 1e-19.
_EXP_TERMS = (
    1 / 2,
    1 / 6,
    1 / 24,
    1 / 120,
    1 / 720,
    1 / 5040,
    1 / 40320,
    1 / 362880,
    1 / 3628800,
    1 / 39916800,
    1 / 479001600,
    1 / 6227020800,
    1 / 87178291200,
)

# Rational approximations of the normal quantile: M. J. Wichura, "Algorithm AS 241: The Percentage
# Points of the Normal Distribution", Applied Statistics 37 (1988), 477-484, routine PPND16.
_CENTRE_OVER = (
    3.3871328727963666080e0,
    1.3314166789178437745e2,
    1.9715909503065514427e3,
    1.3731693765509461125e4,
    4.5921953931549871457e4,
    6.7265770927008700853e4,
    3.3430575583588128105e4,
    2.5090809287301226727e3,
)
_CENTRE_UNDER = (
    1.0,
    4.2313330701600911252e1,
    6.8718700749205790830e2,
    5.3941960214247511077e3,
    2.1213794301586595867e4,
    3.9307895800092710610e4,
    2.8729085735721942674e4,
    5.2264952788528545610e3,
)
_TAIL_OVER = (
    1.42343711074968357734e0,
    4.63033784615654529590e0,
    5.76949722146069140550e0,
    3.64784832476320460504e0,
    1.27045825245236838258e0,
    2.41780725177450611770e-1,
    2.27238449892691845833e-2,
    7.74545014278341407640e-4,
)
_TAIL_UNDER = (
    1.0,
    2.05319162663775882187e0,
    1.67638483018380384940e0,
    6.89767334985100004550e-1,
    1.48103976427480074590e-1,
    1.51986665636164571966e-2,
    5.47593808499534494600e-4,
    1.05075007164441684324e-9,
)
_FAR_OVER = (
    6.65790464350110377720e0,
    5.46378491116411436990e0,
    1.78482653991729133580e0,
    2.96560571828504891230e-1,
    2.65321895265761230930e-2,
    1.24266094738807843860e-3,
    2.71155556874348757815e-5,
    2.01033439929228813265e-7,
)
_FAR_UNDER = (
    1.0,
    5.99832206555887937690e-1,
    1.36929880922735805310e-1,
    1.48753612908506148525e-2,
    7.86869131145613259100e-4,
    1.84631831751005468180e-5,
    1.42151175831644588870e-7,
    2.04426310338993978564e-15,
)

# Stirling's series B_2k / (2k (2k - 1) x^(2k-1)), k = 1..7; at x >= 20 the rest is below 1e-18.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_FROM = 20


def _polynomial(x: Floats, coefficients: Sequence[float]) -> Floats:
    """Evaluate a polynomial, lowest coefficient first, by Horner's rule in one buffer."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        np.multiply(result, x, out=result)
        np.add(result, coefficient, out=result)
    return result


def log(x: Floats) -> Floats:
    """Return the natural logarithm, bit-equal on every machine.

    Args:
        x: finite values above zero.

    Raises:
        ValueError: if a value is zero, negative, infinite or not a number.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.size and not (float(x.min()) > 0.0 and float(x.max()) < np.inf):
        raise ValueError("log needs finite values above zero; clip or drop the others first")
    mantissa, exponent_bits = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = (exponent_bits - small).astype(np.float64)
    f = mantissa - 1.0  # exact: the mantissa lies in [0.707, 1.415)
    s = f / (f + 2.0)
    z = s * s
    series = _polynomial(z, _ATANH_TERMS)
    series *= z
    # log(1 + f) = 2 s + s series, and 2 s = f - s f: keeps the leading term f free of rounding.
    np.subtract(f, series, out=series)
    series *= s
    correction = exponent * _LN2_LOW
    correction -= series
    correction += f
    exponent *= _LN2_HIGH
    exponent += correction
    return exponent


def exp(x: Floats) -> Floats:
    """Return e^x, bit-equal on every machine; beyond the range of float64 it is 0 or infinity.

    Args:
        x: values that are not NaN.

    Raises:
        ValueError: if a value is not a number.
    """
    x = np.asarray(x, dtype=np.float64)
    if bool(np.isnan(x).any()):
        raise ValueError("exp needs numbers; drop the NaN values first")
    x = np.clip(x, -800.0, 800.0)
    k = np.rint(x * (1.0 / 0.6931471805599453))
    r = x - k * _LN2_HIGH
    r -= k * _LN2_LOW
    result = _polynomial(r, _EXP_TERMS)
    result *= r
    result *= r
    result += r
    result += 1.0
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(result, k.astype(np.int32))


def normal_quantile(p: Floats) -> Floats:
    """Return z with Phi(z) = p for the standard normal distribution, bit-equal on every machine.

    Wichura's algorithm AS 241 (1988), relative accuracy about 1e-16 in exact arithmetic.

    Args:
        p: probabilities, strictly between 0 and 1.

    Raises:
        ValueError: if a value is not strictly between 0 and 1.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.size and not (float(p.min()) > 0.0 and float(p.max()) < 1.0):
        raise ValueError("a normal quantile needs probabilities strictly between 0 and 1")
    q = p - 0.5
    r = 0.180625 - q * q
    result = q * (_polynomial(r, _CENTRE_OVER) / _polynomial(r, _CENTRE_UNDER))
    outside = np.flatnonzero(np.abs(q) > 0.425)
    if outside.size:
        p_out = p[outside]
        below = q[outside] < 0.0
        r = np.sqrt(-log(np.where(below, p_out, 1.0 - p_out)))
        near = r <= 5.0
        t = np.where(near, r - 1.6, 0.0)
        tail = _polynomial(t, _TAIL_OVER) / _polynomial(t, _TAIL_UNDER)
        t = np.where(near, 0.0, r - 5.0)
        far = _polynomial(t, _FAR_OVER) / _polynomial(t, _FAR_UNDER)
        magnitude = np.where(near, tail, far)
        result[outside] = np.where(below, -magnitude, magnitude)
    return result


def gamma(x: float) -> float:
    """Return the gamma function of one number, bit-equal on every machine (relative error < 1e-13).

    Shifts the argument above 20 by Gamma(x + 1) = x Gamma(x), then Stirling's series. It gives the
    mean of a Weibull distribution, whose scale a generator must know to the last bit.

    Args:
        x: a number from 0.001 to 30.

    Raises:
        ValueError: if x is outside that range.
    """
    if not 1e-3 <= x <= 30.0:
        raise ValueError(f"gamma is implemented from 0.001 to 30, not for {x!r}")
    steps = max(0, _STIRLING_FROM - floor(x))
    product = 1.0
    for step in range(steps):
        product *= x + step
    y = x + steps
    inverse = 1.0 / y
    square = inverse * inverse
    series = 0.0
    for term in reversed(_STIRLING):
        series = series * square + term
    log_y = float(log(np.array([y]))[0])
    log_gamma = (y - 0.5) * log_y - y + (_LOG_SQRT_2PI + series * inverse)
    return float(exp(np.array([log_gamma]))[0]) / product
