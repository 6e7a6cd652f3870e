"""Define what the command line adds to a recipe, and check it before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tst_megatron.plan.amounts import parse_amount

FEWEST_TOKENS = 1e6
"""Fewer are a slip of the pen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The GPUs that were asked for; None where nothing was said."""

    gpu: str | None = None
    """Kind of GPU. None is that of the paper."""
    num_gpus: int | None = None
    """None are those of the paper."""
    mfu: float | None = None
    """0-1. None is what others reached."""
    price: float | None = None
    """Dollars per GPU hour. None is a published price."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What must not be exceeded; None where there is no limit."""

    flops: float | None = None
    days: float | None = None
    dollars: float | None = None
    tokens: float | None = None
    """Raw tokens that a run may read."""

    def limits(self) -> dict[str, float]:
        """Return the limits that are given, by option."""
        found = {
            "--max-flops": self.flops,
            "--max-days": self.days,
            "--max-dollars": self.dollars,
            "--max-tokens": self.tokens,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """Everything that the command line adds to a recipe."""

    hardware: Hardware = Hardware()
    tokens_available: float | None = None
    """Unique raw tokens; None if they are not known."""
    budget: Budget | None = None
    """None: no advice is wanted."""
    has_memory: bool = False
    """The memory of a rank is wanted, which takes a minute."""


def wishes(
    hardware: Hardware,
    budget: Budget,
    *,
    tokens: str | None,
    is_advised: bool,
    has_memory: bool = False,
) -> Wishes:
    """Put together what was given.

    Args:
        hardware: as it was given.
        budget: limits of the advice.
        tokens: unique raw tokens as they were typed.
        is_advised: advice is wanted.
        has_memory: the memory of a rank is wanted.

    Raises:
        ValueError: numbers cannot be, or limits limit nothing; a line for each.
    """
    problems = [
        problem
        for name, value in budget.limits().items()
        if (problem := _problem_of_limit(name, value, is_advised=is_advised))
    ]
    available = None
    try:
        available = None if tokens is None else _available(tokens)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return Wishes(
        hardware=hardware,
        tokens_available=available,
        budget=budget if is_advised else None,
        has_memory=has_memory,
    )


def _problem_of_limit(name: str, value: float, *, is_advised: bool) -> str | None:
    if not is_advised:
        return f"{name}: is a limit for --advise. Give that too, or leave it out"
    if not 0 < value < math.inf:
        return f"{name}: {value:g} is no limit. Give a number above 0"
    return None


def _available(tokens: str) -> float:
    available = parse_amount(tokens, "--tokens-available", "tokens")
    if available < FEWEST_TOKENS:
        raise ValueError(
            f"--tokens-available: {tokens} is less than a million tokens. Write billions as 300B"
        )
    return available
