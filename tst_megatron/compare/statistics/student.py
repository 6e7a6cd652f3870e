"""Quantiles of Student's t, and the intervals of means that need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from tst_megatron.compare.results import Interval

CONFIDENCE = 0.95
_MOST_DEGREES = 1e5
"""Of freedom, from which on the normal distribution is meant."""


def t_quantile(probability: float, degrees: float) -> float:
    """Return the quantile of Student's t.

    Args:
        probability: 0-1, both excluded.
        degrees: of freedom, above 0; need not be whole.
    """
    if degrees >= _MOST_DEGREES:
        return NormalDist().inv_cdf(probability)
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_cdf(value: float, degrees: float) -> float:
    """Return the probability that Student's t is at most some value."""
    tail = _incomplete_beta(degrees / (degrees + value * value), degrees / 2, 0.5) / 2
    return 1 - tail if value >= 0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction.

    Source: Press et al., Numerical Recipes, section 6.4 (Lentz's method).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + numerator * d, tiny)
            c = _away(1 + numerator / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


# --- intervals -----------------------------------------------------------------------------------


def t_interval(value: float, variance: float, degrees: float, method: str) -> Interval:
    """Return the 95% interval of an estimate.

    Args:
        value: the estimate.
        variance: of the estimate.
        degrees: of freedom with which the variance is known.
        method: in words.
    """
    half = t_quantile(0.5 + CONFIDENCE / 2, degrees) * math.sqrt(variance)
    return Interval(value=value, low=value - half, high=value + half, method=method)


def mean_interval(values: Sequence[float], method: str) -> Interval:
    """Return the mean of two or more independent values with its 95% interval."""
    variance = float(np.var(values, ddof=1)) / len(values)
    return t_interval(float(np.mean(values)), variance, len(values) - 1, method)


def welch_interval(one: Sequence[float], other: Sequence[float], method: str) -> Interval:
    """Return mean(one) - mean(other) with its 95% interval; both have two values or more.

    Source: Welch, Biometrika 34 (1947).
    """
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (one, other)]
    total = sum(parts)
    value = float(np.mean(one) - np.mean(other))
    freedom = degrees(parts, [len(one) - 1, len(other) - 1])
    return t_interval(value, total, freedom, method)


def degrees(variances: Sequence[float], each: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of independent variances.

    Args:
        variances: the terms.
        each: the degrees of freedom with which each is known; infinite for an assumed one.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    below = sum(part**2 / freedom for part, freedom in zip(variances, each, strict=True))
    return sum(variances) ** 2 / below if below > 0 else math.inf
