"""Read grids of values, and name what they make: every combination, each a name fit for a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tst_megatron.sweep.arms import Keys
from tst_megatron.system.strict_yaml import NotYAML, read_yaml

Grid = Mapping[str, Sequence[Any]]
"""Keys with a dot into a block, each with the values that it takes."""

_DECIDED = {
    "seed": "give --seeds N, which takes the seeds from that of the recipe on",
    "tst.stream-unit-bags": "all arms have the same, so that they read one permutation of the text",
    "base": "a base is named in the recipe file alone",
}
"""Keys that no grid may have, and why."""

MOST_LETTERS, MOST_LETTERS_OF_A_NAME = 40, 120
"""Of a value and of a combination. A longer one is cut, and has a part of its hash behind it."""


def read_grid(options: Sequence[str], overrides: Sequence[str]) -> Grid:
    """Return the grid of ``--grid`` options, each ``KEY=VALUE,VALUE``.

    Args:
        options: in the order in which the first key changes slowest. Values are YAML; one with
            commas of its own is a list or a block (``tst.schedule=[[4, 0.2], [1, 0.8]]``).
        overrides: the ``key=value`` words of the same command.

    Raises:
        ValueError: with every problem.
    """
    grid: dict[str, list[Any]] = {}
    problems: list[str] = []
    given = {word.partition("=")[0] for word in overrides}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key or not text.strip():
            problems.append(f"--grid {option}: is not KEY=VALUE,VALUE, such as tst.bag-size=4,6")
        elif key in _DECIDED:
            problems.append(f"--grid {key}: {_DECIDED[key]}")
        elif key in grid:
            problems.append(f"--grid {key}: is given twice. Name its values in one --grid")
        elif key in given:
            problems.append(f"--grid {key}: {key}= is given too. Remove one of the two")
        else:
            grid[key] = _values(key, text, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return grid


def _values(key: str, text: str, problems: list[str]) -> list[Any]:
    try:
        values = read_yaml(f"[{text}]", lambda said: problems.append(f"--grid {key}: {said}"))
    except NotYAML as error:
        problems.append(f"--grid {key}={text}: the values are not YAML: {error}")
        return []
    if not isinstance(values, list):
        problems.append(f"--grid {key}={text}: is no list of values with commas between them")
        return []
    seen: list[Any] = []
    for value in values:
        # 4 and 4.0 are one number; true is not the number 1.
        if any(
            value == other and isinstance(value, bool) == isinstance(other, bool) for other in seen
        ):
            problems.append(f"--grid {key}: {value_name(value)} is given twice. Give it once")
        seen.append(value)
    return values


def combinations(grid: Grid, without: Collection[str] = ()) -> Iterator[Keys]:
    """Make every combination of the values of a grid, the last key changing fastest.

    Args:
        grid: with no keys, it makes one combination, which is empty.
        without: keys that are left out.
    """
    keys = [key for key in grid if key not in without]
    for values in itertools.product(*(grid[key] for key in keys)):
        yield dict(zip(keys, values, strict=True))


def combination_name(keys: Mapping[str, Any]) -> str:
    """Name a combination, such as ``bag-size-4_superposition-fraction-0.3``."""
    parts = (f"{value_name(key.removeprefix('tst.'))}-{value_name(keys[key])}" for key in keys)
    return _shortened("_".join(parts), MOST_LETTERS_OF_A_NAME)


def value_name(value: Any) -> str:
    """Spell a value with letters, digits and ``.+-`` alone."""
    if isinstance(value, int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value)
    name = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9.+-]+", "-", text)).strip("-.")
    return _shortened(name or "empty", MOST_LETTERS, whole=text)


def _shortened(name: str, most: int, whole: str | None = None) -> str:
    if len(name) <= most:
        return name
    digest = hashlib.sha256((whole or name).encode()).hexdigest()[:8]
    return f"{name[: most - len(digest) - 1].rstrip('-._')}-{digest}"


def unique(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number behind it if it is taken.

    Some file systems take two names for one that differ in capitals alone.
    """
    folded = {other.casefold() for other in taken}
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in numbered if each.casefold() not in folded)
