"""Decide before a run: the command ``plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import Overrides, RecipePath
from tst_megatron.recipe.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from tst_megatron.plan.wishes import Wishes
    from tst_megatron.training.run.folder import RunFolder


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Compare with this recipe; default: an ordinary run of as many steps."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the job; default: 64.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Kind of GPU, such as b200, h200 or h100; default: b200.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Model FLOPs over dense BF16 peak, 0-1; default: what others reached."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Dollars per GPU hour; default: a published price.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens-available", help="Unique raw tokens, such as 300B or 10T."),
    ] = None,
    has_memory: Annotated[
        bool, typer.Option("--memory", help="Also whether a rank fits its GPU; takes a minute.")
    ] = False,
    is_advised: Annotated[
        bool, typer.Option("--advise", help="Also search K, r and steps within the limits.")
    ] = False,
    max_flops: Annotated[
        float | None, typer.Option(help="With --advise: FLOPs that the run may take.")
    ] = None,
    max_days: Annotated[
        float | None, typer.Option(help="With --advise: days that it may take.")
    ] = None,
    max_dollars: Annotated[
        float | None, typer.Option(help="With --advise: dollars that it may cost.")
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="Also keep the plan in this run's folder, new or not, for status."),
    ] = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object instead.")
    ] = False,
) -> None:
    """Say what a run costs, what superposition gains, and whether text is too short for it."""
    from tst_megatron.plan.cost.machine import check_hardware
    from tst_megatron.plan.published.read import published
    from tst_megatron.plan.wishes import Budget, Hardware, wishes

    hardware = Hardware(gpu=gpu, num_gpus=gpus, mfu=mfu, price=price)
    budget = Budget(flops=max_flops, days=max_days, dollars=max_dollars)
    wanted = wishes(hardware, budget, tokens=tokens, is_advised=is_advised, has_memory=has_memory)
    check_hardware(published(), hardware)
    run = None if run_folder is None else _checked(run_folder)
    loaded = load_recipe(recipe, overrides or [])
    beside = None if baseline is None else load_recipe(baseline)
    _show_plan(loaded, beside, wanted, run=run, is_json=is_json)


def _checked(folder: Path) -> RunFolder:
    from tst_megatron.training.run.folder import RunFolder
    from tst_megatron.training.run.prepare import check_place

    run = RunFolder(folder)
    check_place(run)
    return run


def _show_plan(
    recipe: Recipe,
    baseline: Recipe | None,
    wanted: Wishes,
    *,
    run: RunFolder | None,
    is_json: bool,
) -> None:
    from tst_megatron.megatron.cpu import host

    # Planning is CPU work also on a machine that has a GPU; before Megatron is imported.
    host.install(even_with_gpu=True)
    from tst_megatron.plan.make_plan import make_plan
    from tst_megatron.plan.show import show
    from tst_megatron.training.report.plan_file import write_plan

    made = make_plan(recipe, wanted, baseline=baseline)
    if run is not None:
        run.path.mkdir(parents=True, exist_ok=True)
        write_plan(run.plan, made.as_keys())
    if is_json:
        typer.echo(json.dumps(made.as_keys(), allow_nan=False))
    else:
        show(made, Console())
