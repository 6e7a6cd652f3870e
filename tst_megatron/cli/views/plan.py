"""A plan on the terminal or as JSON, its picture, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from tst_megatron.plan.wishes import Wishes
    from tst_megatron.recipe.recipe import Recipe
    from tst_megatron.training.run.folder import RunFolder


def show_plan(
    recipe: Recipe,
    baseline: Recipe | None,
    wanted: Wishes,
    *,
    run: RunFolder | None,
    picture: Path | None,
    is_json: bool,
) -> None:
    """Make a plan, keep it with a run, draw it where a picture is wanted, and print it."""
    from tst_megatron.megatron.cpu import host

    # Planning is CPU work also on a machine that has a GPU; before Megatron is imported.
    host.install(even_with_gpu=True)
    from tst_megatron.plan.make_plan import make_plan
    from tst_megatron.plan.picture import draw_plan
    from tst_megatron.plan.show import show
    from tst_megatron.training.report.plan_file import write_plan

    made = make_plan(recipe, wanted, baseline=baseline)
    # Printed last, as that may go to a pipe that closes early.
    if run is not None:
        run.path.mkdir(parents=True, exist_ok=True)
        write_plan(run.plan, made.as_keys())
    try:
        if picture is not None:
            draw_plan(made, picture)
    finally:
        # What took a minute is shown also where its picture cannot be written.
        if is_json:
            typer.echo(json.dumps(made.as_keys(), allow_nan=False))
        else:
            show(made, Console())
    if picture is not None:
        # Standard output is for one JSON object alone.
        Console(stderr=is_json).print(f"picture: {picture}", markup=False, soft_wrap=True)
