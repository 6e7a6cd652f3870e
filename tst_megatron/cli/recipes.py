"""Look at a recipe without training: the commands ``check``, ``params`` and ``plan``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tst_megatron.cli.shared import Overrides, RecipePath, outside_runs
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.files import write_beside
from tst_megatron.training.console import announce, tell

if TYPE_CHECKING:
    from tst_megatron.checkpoint.start import Start
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.recipe.check.plain import NoTextError, PlainCheck


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the job; default: the smallest that fits.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run-folder", help="Also check that this run can be started or resumed."),
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(help="Write the variables to start ranks with here, a NAME=VALUE a line."),
    ] = None,
    starting: Annotated[
        bool,
        typer.Option("--starting", help="A start follows: refuse a run folder that is in use."),
    ] = False,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Leave the text out, which is not prepared yet.")
    ] = False,
) -> None:
    """Check a recipe before it waits in a queue: all problems at once, status 2 if any."""
    from tst_megatron.recipe.check.plain import NoTextError
    from tst_megatron.training.check.check_recipe import checked_recipe

    console = Console()
    if no_data:
        if run is not None or environment is not None or starting:
            raise ValueError(
                "--no-data: a start needs its text. Leave --no-data out, or --run-folder, "
                "--environment and --starting"
            )
        _check_without_text(recipe, overrides, nproc, console)
        return
    try:
        checked = checked_recipe(recipe, overrides, nproc)
    except NoTextError as error:
        _check_the_rest(error, console)
        raise
    lines: list[str] = []
    if run is not None:
        lines = _check_start(checked, run, starting=starting)
    else:
        _check_weights(checked.arguments)
    announce(checked, console)
    if environment is not None:
        _write_environment(environment, checked.environment)
    for line in (*lines, _this_machine(checked.recipe.profile, checked.world_size)):
        tell(line)
    console.print("No problem found.", style="green")


def _check_start(checked: CheckedRecipe, folder: Path, *, starting: bool) -> list[str]:
    """Check that a run can be started or resumed, and return what to say of it, a line each.

    Raises:
        RecipeError: with every problem.
        InUse: a start follows, and the folder is in use.
    """
    from tst_megatron.training.run.folder import RunFolder
    from tst_megatron.training.run.start import plan_start

    run = RunFolder(folder)
    user = run.user()
    with run.held(say=tell) if starting and folder.exists() else nullcontext():
        start = plan_start(checked, run)
    lines = _notes_of_start(checked, folder, start)
    if user is not None and not starting:
        lines.append(f"{folder}: in use by {user}. A start is refused until that has ended")
    return lines


def _notes_of_start(checked: CheckedRecipe, folder: Path, start: Start) -> list[str]:
    from tst_megatron.training.run import prepare, saves
    from tst_megatron.training.run.folder import RunFolder
    from tst_megatron.training.run.plan import run_plan
    from tst_megatron.training.run.records import notes_of

    run, plan = RunFolder(folder), run_plan(checked)
    would = (
        "is finished: a start would do nothing"
        if saves.is_finished(run, plan)
        else f"would start after step {start.step}"
    )
    return [*start.notes, *notes_of(prepare.damaged(run, plan)), f"{folder}: {would}"]


def _write_environment(path: Path, variables: Mapping[str, str]) -> None:
    lines = (f"{name}={value}\n" for name, value in variables.items())
    write_beside(path, "".join(lines))


# --- a recipe whose text is not prepared yet ------------------------------------------------------

UNKNOWN = (
    "not known without the text: how often it is read, whether its held-out part is enough for "
    "eval-iters, and whether its tokenizer fits the model"
)


def _check_without_text(
    recipe: Path, overrides: list[str] | None, nproc: int | None, console: Console
) -> None:
    """Check everything of a recipe but its text."""
    from tst_megatron.recipe.check.plain import check_plainly

    loaded = load_recipe(recipe, overrides or [])
    _show_rest(check_plainly(loaded, world_size=nproc, has_text=False), console)
    console.print("No problem found in the rest.", style="green")


def _check_the_rest(error: NoTextError, console: Console) -> None:
    """Check the rest of a recipe whose text is missing.

    Raises:
        RecipeError: something else is wrong too; with all of it.
    """
    try:
        _show_rest(error.plain, console)
    except RecipeError as more:
        raise RecipeError([*error.problems, *more.problems]) from None


def _show_rest(plain: PlainCheck, console: Console) -> None:
    from tst_megatron.hf.export_warnings import export_warnings
    from tst_megatron.recipe.check.megatron_arguments import NO_TOKENIZER
    from tst_megatron.training.check.check_recipe import asking_megatron, install_host, validated

    with asking_megatron():
        install_host(plain.recipe.profile)
        arguments, _, notes = validated(plain)
        _check_weights(arguments)
    announce(plain, console)
    for note in notes:
        tell(note)
    for warning in export_warnings(arguments):
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    tell(_this_machine(plain.recipe.profile, plain.world_size))
    tell(UNKNOWN)
    if plain.values.vocab_size is None:
        tell(f"not known either: the vocabulary, taken to be {NO_TOKENIZER:,} for this check")


def _check_weights(arguments: argparse.Namespace) -> None:
    """Check the weights that a new run would start from. A resumed run may not need them.

    Raises:
        RecipeError: they are not there, or not those of this model.
    """
    if arguments.pretrained_checkpoint:
        from tst_megatron.training.run.pretrained import pretrained_problems

        if problems := pretrained_problems(arguments):
            raise RecipeError(problems)


def _this_machine(profile: str | None, num_ranks: int) -> str:
    """Say in a line if the machine that a recipe is checked on could run it."""
    from tst_megatron.megatron.cpu.device import why_not_here

    reason = why_not_here(profile, num_ranks=num_ranks)
    ranks = "1 rank" if num_ranks == 1 else f"{num_ranks} ranks"
    return f"this machine could run it, with {ranks}" if reason is None else f"not here: {reason}"


def params(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Count the parameters of a recipe's model, part by part; takes no data, memory or GPU."""
    from tst_megatron.megatron.cpu import host

    # Counting is CPU work also on a machine that has a GPU; before Megatron is imported.
    host.install(even_with_gpu=True)
    from tst_megatron.recipe.parameters import EMBEDDINGS, OUTPUT_LAYER, TIED, count_parameters

    count = count_parameters(load_recipe(recipe, overrides or []))
    table = Table("part", "parameters", "active")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in count.parts:
        table.add_row(part.name, f"{part.total:,}", f"{part.active:,}")
    table.add_section()
    table.add_row("all", f"{count.total:,}", f"{count.active():,}")
    console = Console()
    console.print(table)
    for text, number in (
        ("total", count.total),
        ("active, both tables", count.active()),
        ("active, output layer but no input embeddings", count.active(EMBEDDINGS)),
        ("active, neither table", count.active(EMBEDDINGS, OUTPUT_LAYER, TIED)),
    ):
        console.print(f"{text}: {number:,}", highlight=False)
    if count.padding:
        warning = f"warning: {count.padding}"
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)


# --- what a run would cost and gain ---------------------------------------------------------------

PictureOfPlan = Annotated[
    Path | None,
    typer.Option(
        help="PNG file for cost against loss, and with --memory also for memory by part.",
        show_default=False,
        callback=outside_runs,
    ),
]


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
    picture: PictureOfPlan = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object instead.")
    ] = False,
) -> None:
    """Say what a run costs, what superposition gains, and whether text is too short for it."""
    from tst_megatron.cli.views.plan import show_plan
    from tst_megatron.plan.cost.machine import check_hardware
    from tst_megatron.plan.picture import check_picture
    from tst_megatron.plan.published.read import published
    from tst_megatron.plan.wishes import Budget, Hardware, wishes

    if picture is not None:
        check_picture(picture)
    hardware = Hardware(gpu=gpu, num_gpus=gpus, mfu=mfu, price=price)
    budget = Budget(flops=max_flops, days=max_days, dollars=max_dollars)
    wanted = wishes(hardware, budget, tokens=tokens, is_advised=is_advised, has_memory=has_memory)
    check_hardware(published(), hardware)
    loaded = load_recipe(recipe, overrides or [])
    beside = None if baseline is None else load_recipe(baseline)
    show_plan(loaded, beside, wanted, picture=picture, is_json=is_json)
