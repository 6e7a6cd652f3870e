"""Compare recorded runs: the command ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import outside_runs


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, TensorBoard folders of stock Megatron, CSV files of other trackers.",
            show_default=False,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Also write one page, with its pictures beside.", callback=outside_runs
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The arm that the others are compared with: its name, or that of a run."),
    ] = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object instead.")
    ] = False,
) -> None:
    """Say whether an arm beats another, how sure that is, what differs, and what each costs."""
    from tst_megatron.compare.comparison import compare_runs
    from tst_megatron.compare.report.keys import as_keys
    from tst_megatron.compare.report.page import check_page, write_page
    from tst_megatron.compare.report.terminal import show

    if html is not None:
        check_page(html, runs)
    found = compare_runs(runs, baseline=baseline)
    # The page first: what is printed may go to a pipe that closes early.
    pictures = None if html is None else write_page(found, html)
    if is_json:
        typer.echo(json.dumps(as_keys(found), allow_nan=False))
    else:
        show(found, Console())
    if pictures is not None:
        # Standard output is for one JSON object alone.
        console = Console(stderr=is_json)
        console.print(f"page: {html}, pictures: {pictures}", markup=False, soft_wrap=True)
