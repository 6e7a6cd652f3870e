"""Say by published laws what text is worth that is read again, and where superposition stops.

The laws are of ordinary training, and nobody has fitted one to superposition. The form used here
has two parts, and they are those of ``docs/evidence.md``:

    gain(U) = taught x w(U) - price(U)

*Price* is what an ordinary run of C positions loses without the steps of superposition:
L((1 - r) C) - L(C). *Taught* is the gain with text to spare, plus that price. Superposition teaches
by reading more text, D instead of C raw tokens. So what it taught is weighted by w: what a law says
the text from C to D is worth with U unique tokens, over its worth with text to spare. All gains are
in nats, and none is above that with text to spare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tst_megatron.plan.published.records import Law

_STEPS = 400
_FEWEST_TOKENS = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a run with superposition reads, and gains with text to spare."""

    positions: float
    """C; also the raw tokens of an ordinary run of as many steps."""
    raw_tokens: float
    """D."""
    superposition_fraction: float
    gain: float
    """At equal FLOPs with text to spare, in nats."""


def effective_tokens(law: Law, tokens: float, unique: float) -> float:
    """Return the new tokens that are worth as much as ``tokens`` read from ``unique`` ones."""
    if tokens <= unique:
        return tokens
    if law.repeats == "nothing":
        return unique
    if law.repeats == "few":
        return min(tokens, unique * (law.epochs or 1.0))
    decay = law.decay_epochs or 1.0
    return unique + unique * decay * -math.expm1(-(tokens / unique - 1) / decay)


def data_term(law: Law, tokens: float, unique: float = math.inf) -> float:
    """Return the part of the loss that depends on the text: B / D'^beta, in nats."""
    return float(law.coefficient / effective_tokens(law, tokens, unique) ** law.exponent)


def slope(law: Law, tokens: float) -> float:
    """Return by how many nats the loss falls each time that new text grows by the factor e."""
    return law.exponent * data_term(law, tokens)


def net_gain(law: Law, reading: Reading, unique: float) -> float:
    """Return the gain at equal FLOPs with ``unique`` tokens of text, in nats."""
    left = reading.positions * (1 - reading.superposition_fraction)

    def price(tokens: float) -> float:
        return data_term(law, left, tokens) - data_term(law, reading.positions, tokens)

    worth = 1.0
    if reading.raw_tokens > reading.positions:

        def more(tokens: float) -> float:
            fewer = data_term(law, reading.positions, tokens)
            return fewer - data_term(law, reading.raw_tokens, tokens)

        worth = more(unique) / more(math.inf)
    weighed = (reading.gain + price(math.inf)) * worth - price(unique)
    # The price falls where text is read again, but no run gains more there than with new text.
    return min(reading.gain, weighed)


def boundary(law: Law, reading: Reading, least_gain: float) -> float | None:
    """Return the unique tokens below which the gain is less than ``least_gain``.

    Returns:
        None if it is less even with text to spare.
    """
    if reading.gain < least_gain:
        return None

    def pays(unique: float) -> bool:
        return net_gain(law, reading, unique) >= least_gain

    # The price falls with the text too, so the gain may rise again far below: look from above.
    high = reading.raw_tokens
    ratio = (_FEWEST_TOKENS / high) ** (1 / _STEPS)
    low = high * ratio
    while low >= _FEWEST_TOKENS and pays(low):
        high, low = low, low * ratio
    return bisect(pays, low, high) if low >= _FEWEST_TOKENS else 0.0


def bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition begins to hold, between a number where it does not and one where."""
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def equal_loss_factor(law: Law, positions: float, gain: float) -> float | None:
    """Return how many times the steps an ordinary run needs to end lower by ``gain``.

    Returns:
        None if no number of steps is enough by this law.
    """
    wanted = data_term(law, positions) - gain
    if wanted <= 0:
        return None
    tokens = float((law.coefficient / wanted) ** (1 / law.exponent))
    return tokens / positions
