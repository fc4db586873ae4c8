"""Maximum-likelihood fit of a Weibull distribution to gaps between failures."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: The 97.5 % point of the standard normal distribution.
_Z_95: Final = 1.959963984540054

# ln(shape) is found by bisection within these; a fit that wants to leave them is not a fit.
_SHAPE_LOW: Final = 1e-3
_SHAPE_HIGH: Final = 1e4


@dataclass(frozen=True, slots=True)
class WeibullFit:
    """A fitted Weibull distribution with survival exp(-(x / scale)^shape).

    Attributes:
        shape: below 1, failures come in clusters; 1 is Poisson; above 1, they are more regular.
        ci95_low: low end of the 95 % confidence interval of the shape.
        ci95_high: its high end.
        scale_s: the scale in seconds.
    """

    shape: float
    ci95_low: float
    ci95_high: float
    scale_s: float


def fit_weibull(gaps_s: NDArray[np.float64]) -> WeibullFit | None:
    """Fit shape and scale by maximum likelihood; None where no finite fit exists.

    The shape k solves sum(x^k ln x) / sum(x^k) - 1/k - mean(ln x) = 0, whose left side rises in
    k. The interval is a Wald interval of ln k from the observed information of the profile
    likelihood l(k) = n (ln k - ln sum(x^k)) + (k - 1) sum(ln x) + const: with y = ln x and weights
    x^k, -l''(k) / n = 1 / k^2 + Var_w(y), so that ln k has variance 1 / (n (1 + k^2 Var_w(y))).

    Args:
        gaps_s: gaps in seconds; zeros have no place in a Weibull likelihood.

    Returns:
        The fit, or None for fewer than two gaps or gaps that are all alike (shape infinite).

    Raises:
        ValueError: if a gap is not positive and finite.
    """
    gaps_s = np.asarray(gaps_s, dtype=np.float64)
    if gaps_s.size and not (float(gaps_s.min()) > 0.0 and isfinite(float(gaps_s.max()))):
        raise ValueError("a Weibull fit needs gaps above zero; merge failures of one instant first")
    if gaps_s.size < 2:
        return None
    # Around the mean logarithm: x^k then neither overflows nor vanishes as a whole.
    centre = float(np.log(gaps_s).mean())
    y = np.log(gaps_s) - centre
    if float(np.ptp(y)) < 1e-12:
        return None
    low, high = _SHAPE_LOW, _SHAPE_HIGH
    if _score(y, low) > 0.0 or _score(y, high) < 0.0:
        return None
    for _ in range(200):
        middle = sqrt(low * high)
        if not low < middle < high:
            break
        if _score(y, middle) < 0.0:
            low = middle
        else:
            high = middle
    shape = sqrt(low * high)
    weights, largest = _weights(y, shape)
    total = float(weights.sum())
    mean = float((weights * y).sum()) / total
    variance = float((weights * (y - mean) ** 2).sum()) / total
    half_width = _Z_95 / sqrt(gaps_s.size * (1.0 + shape * shape * variance))
    log_scale = (largest + float(np.log(total / gaps_s.size))) / shape
    return WeibullFit(
        shape=shape,
        ci95_low=shape * exp(-half_width),
        ci95_high=shape * exp(half_width),
        scale_s=exp(centre + log_scale),
    )


def _weights(y: NDArray[np.float64], shape: float) -> tuple[NDArray[np.float64], float]:
    """Return e^(shape y) over its largest value, and the logarithm of that value."""
    exponents = y * shape
    largest = float(exponents.max())
    # Below e^-700 a weight counts for nothing; clipping keeps the underflow warning away.
    return np.exp(np.maximum(exponents - largest, -700.0)), largest


def _score(y: NDArray[np.float64], shape: float) -> float:
    weights, _ = _weights(y, shape)
    return float((weights * y).sum() / weights.sum()) - 1.0 / shape
