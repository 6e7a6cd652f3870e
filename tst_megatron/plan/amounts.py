"""Read and write large numbers as people do: 300B tokens, 12.0 GFLOP, $72k."""

from __future__ import annotations

import math
import re

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_AMOUNT = re.compile(r"([0-9][0-9,]*\.?[0-9]*(?:e[+]?[0-9]+)?|\.[0-9]+)\s*([KMBT]?)", re.IGNORECASE)


def parse_amount(text: str, option: str, unit: str) -> float:
    """Return the number that a text such as ``300B``, ``1.5e12`` or ``4,000`` spells.

    Args:
        text: as it was typed.
        option: that it was given to.
        unit: of the number, in plural.

    Raises:
        ValueError: it is no number above 0.
    """
    match = _AMOUNT.fullmatch(text.strip())
    value = float(match[1].replace(",", "")) * _FACTORS[match[2].upper()] if match else 0.0
    if not 0 < value < math.inf:
        raise ValueError(
            f"{option}: {text} is no number of {unit} above 0. Write it as 300B, 10T, 1.5e12 or "
            "4,000,000"
        )
    return value


def short(number: float, digits: int = 3) -> str:
    """Write a count with a letter, such as ``1.05T`` or ``254M``."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded(number / factor, digits) >= 1:
            return f"{rounded(number / factor, digits):,.12g}{letter}"
    return f"{rounded(number, digits):,.12g}"


def rounded(number: float, digits: int = 3) -> float:
    """Round to some digits; digits before the point all stay."""
    if number == 0 or not math.isfinite(number):
        return number
    return round(number, max(0, digits - 1 - math.floor(math.log10(abs(number)))))


def dollars(amount: float) -> str:
    """Write a price, such as ``$72.4k``."""
    return f"${short(amount)}"


def num_bytes(number: float) -> str:
    """Write a size in decimal units, such as ``147 GB``."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= factor:
            return f"{rounded(number / factor):g} {unit}"
    return f"{rounded(number):g} B"


def power(number: float) -> str:
    """Write a number of FLOPs, such as ``1.26e22``."""
    return f"{number:.3g}".replace("e+", "e")


def nats(number: float) -> str:
    """Write a difference of losses."""
    return f"{number:+.3f}".replace("-", "−")
