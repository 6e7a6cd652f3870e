"""Decide before a run: the command ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tst_megatron.cli.shared import Overrides, RecipePath, noting, outside_runs
from tst_megatron.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from tst_megatron.training.run.folder import RunFolder

Baseline = Annotated[
    Path | None,
    typer.Option(help="Compare with this recipe; default: an ordinary run of as many steps."),
]
NumGpus = Annotated[int | None, typer.Option("--gpus", help="GPUs of the job; default: 64.")]
Kind = Annotated[
    str | None, typer.Option(help="Kind of GPU, such as b200, h200 or h100; default: b200.")
]
Mfu = Annotated[
    float | None,
    typer.Option(help="Model FLOPs over dense BF16 peak, 0-1; default: what others reached."),
]
Price = Annotated[
    float | None, typer.Option(help="Dollars per GPU hour; default: a published price.")
]
Tokens = Annotated[
    str | None,
    typer.Option("--tokens-available", help="Unique raw tokens, such as 300B or 10T."),
]
Memory = Annotated[
    bool, typer.Option("--memory", help="Also whether a rank fits its GPU; takes a minute.")
]
Advise = Annotated[
    bool, typer.Option("--advise", help="Also search K, r and steps within the limits.")
]
MaxFlops = Annotated[float | None, typer.Option(help="With --advise: FLOPs that the run may take.")]
MaxDays = Annotated[float | None, typer.Option(help="With --advise: days that it may take.")]
MaxDollars = Annotated[float | None, typer.Option(help="With --advise: dollars that it may cost.")]
MaxTokens = Annotated[
    str | None, typer.Option(help="With --advise: raw tokens that it may read, such as 2T.")
]
Picture = Annotated[
    Path | None,
    typer.Option(
        help="PNG file for cost against loss, and with --memory also for memory by part.",
        show_default=False,
        callback=outside_runs,
    ),
]
Kept = Annotated[
    Path | None,
    typer.Option(help="Also keep the plan in this run's folder, new or not, for status."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as one JSON object instead.")]


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    baseline: Baseline = None,
    num_gpus: NumGpus = None,
    gpu: Kind = None,
    mfu: Mfu = None,
    price: Price = None,
    tokens: Tokens = None,
    has_memory: Memory = False,
    is_advised: Advise = False,
    max_flops: MaxFlops = None,
    max_days: MaxDays = None,
    max_dollars: MaxDollars = None,
    max_tokens: MaxTokens = None,
    picture: Picture = None,
    run_folder: Kept = None,
    is_json: Json = False,
) -> None:
    """Say what a run costs, what superposition gains, and whether text is too short for it."""
    from tst_megatron.cli.views.plan import show_plan
    from tst_megatron.plan.amounts import parse_amount
    from tst_megatron.plan.cost.machine import check_hardware
    from tst_megatron.plan.picture import check_picture
    from tst_megatron.plan.published.read import published
    from tst_megatron.plan.wishes import Budget, Hardware, wishes

    hardware = Hardware(gpu=gpu, num_gpus=num_gpus, mfu=mfu, price=price)
    run, most_tokens, problems = None, None, list[str]()
    with noting(problems):
        if max_tokens is not None:
            most_tokens = parse_amount(max_tokens, "--max-tokens", "tokens")
    budget = Budget(flops=max_flops, days=max_days, dollars=max_dollars, tokens=most_tokens)
    with noting(problems):
        check_hardware(published(), hardware)
    with noting(problems):
        wanted = wishes(
            hardware, budget, tokens=tokens, is_advised=is_advised, has_memory=has_memory
        )
    with noting(problems):
        if picture is not None:
            check_picture(picture)
    with noting(problems):
        run = None if run_folder is None else _checked(run_folder)
    if problems:
        raise ValueError("\n".join(problems))
    loaded = load_recipe(recipe, overrides or [])
    beside = None if baseline is None else load_recipe(baseline)
    show_plan(loaded, beside, wanted, run=run, picture=picture, is_json=is_json)


def _checked(folder: Path) -> RunFolder:
    from tst_megatron.training.run.folder import RunFolder
    from tst_megatron.training.run.prepare import check_place

    run = RunFolder(folder)
    check_place(run)
    return run
