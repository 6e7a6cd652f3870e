"""Arguments that several commands take: a recipe, its overrides, an output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tst_megatron.checkpoint.outputs import check_output

WIDTH_OF_A_FILE = 10_000
"""Columns of a table where there is no terminal to fit: a row stays one line."""

RecipePath = Annotated[Path, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that win over the recipe's, such as tst.bag-size=4."
    ),
]


def outside_runs(output: Path | None) -> Path | None:
    """Check an output path: the callback of every option and argument that names one."""
    if output is not None:
        check_output(output)
    return output


@contextlib.contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Note what is wrong with an input and go on, so that all problems are said at once."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))
