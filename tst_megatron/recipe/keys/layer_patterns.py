"""Read the small language in which some of Megatron's options describe each layer.

``moe-layer-freq: ([0]*1+[1]*47)`` is a list of one 0 and 47 ones. Megatron hands such a text to
Python's ``eval``, which makes lists of any length. Here a list has a largest length.
"""

from __future__ import annotations

import ast

MOST_LAYERS = 10_000
"""No list of layers is longer."""


def frequency(text: str) -> int | list[int]:
    """Read a number N (every N-th layer), or a list with an entry for each layer.

    Raises:
        ValueError: the text is neither.
    """
    if "[" not in text:
        return int(text)
    value = _value(_tree(text))
    if isinstance(value, int) or not all(type(entry) is int for entry in value):
        raise ValueError("write a number, or a list of numbers such as [0]*1+[1]*3")
    return value


def window(text: str) -> tuple[int, ...]:
    """Read a tuple of numbers, such as ``(8,0)`` or ``8,0``.

    Raises:
        ValueError: the text is not such a tuple.
    """
    try:
        return tuple(int(entry) for entry in text.strip("()").split(","))
    except ValueError:
        raise ValueError("write whole numbers with commas, such as (8,0)") from None


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("the brackets, signs and commas of the list do not fit") from None


def _value(node: ast.expr) -> int | list[int]:
    """Evaluate numbers, lists, ``+`` and ``*``, and nothing else."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return number
        case ast.List(elts=entries):
            return _shorter([_value(entry) for entry in entries])  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _sum(_value(left), _value(right))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(_value(left), _value(right))
    raise ValueError("only numbers, lists, + and * may stand in it")


def _sum(left: int | list[int], right: int | list[int]) -> int | list[int]:
    if isinstance(left, list) and isinstance(right, list):
        return _shorter(left + right)
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    raise ValueError("a number cannot be added to a list")


def _product(left: int | list[int], right: int | list[int]) -> int | list[int]:
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if isinstance(left, list) and isinstance(right, list):
        raise ValueError("a list cannot be multiplied by a list")
    entries, times = (left, right) if isinstance(left, list) else (right, left)
    assert isinstance(entries, list) and isinstance(times, int)
    if len(entries) * times > MOST_LAYERS:
        raise ValueError(f"the list has {len(entries) * times:,} entries; {MOST_LAYERS:,} is most")
    return entries * times


def _shorter(entries: list[int]) -> list[int]:
    if len(entries) > MOST_LAYERS:
        raise ValueError(f"the list has {len(entries):,} entries; {MOST_LAYERS:,} is most")
    return entries
