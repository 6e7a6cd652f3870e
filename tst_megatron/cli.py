"""The ``tst-megatron`` command: one thin function per subcommand.

Exit statuses: 0 finished, 75 stopped or to be tried again, 2 bad input, 93 do not restart, anything
else a failure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tst_megatron import __version__
from tst_megatron.recipe import RecipeError, load_recipe

if TYPE_CHECKING:
    from tst_megatron.check import CheckedRecipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train Qwen3-family MoE models on Megatron-Core with Token-Superposition Training.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make a tokenizer and prepare training text.")
app.add_typer(data_app, name="data")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Look after a run's checkpoints.")
app.add_typer(checkpoint_app, name="checkpoint")

FAILED = 1
BAD_INPUT = 2

WRONG_PATHS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
"""Errors of the operating system that say that a name was wrong."""

RecipePath = Annotated[Path, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Values that win over the recipe's, such as tst.bag-size=4."
    ),
]


def main() -> None:
    """Run the command line; bad input ends in one clear message and status 2."""
    try:
        app()
    except RecipeError as error:
        console = Console(stderr=True)
        noun = "problem" if len(error.problems) == 1 else "problems"
        console.print(f"{len(error.problems)} {noun}:", style="bold red", highlight=False)
        for problem in error.problems:
            console.print(f"  - {problem}", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(BAD_INPUT) from None
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"{error}", style="red", markup=False, soft_wrap=True)
        # A full disk, say, is no fault of the input: trying again may help.
        is_bad_input = not isinstance(error, OSError) or isinstance(error, WRONG_PATHS)
        raise SystemExit(BAD_INPUT if is_bad_input else FAILED) from None


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the job; default: the smallest that fits.")
    ] = None,
) -> None:
    """Check a recipe before it waits in a queue: all problems at once, status 2 if any."""
    console = Console()
    checked = _checked(recipe, overrides, nproc)
    _announce(checked, console)
    console.print("No problem found.", style="green")


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            # Not --run: torchrun takes that for an abbreviation of an option of its own.
            "--run-folder",
            help="An existing one is resumed. Default: runs/FOLDER-RECIPE.",
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1, help="Start this many ranks here. Without it, this process is one rank."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a run folder that is not empty.")
    ] = False,
) -> None:
    """Train as a recipe says, or resume a run that was stopped.

    Under srun or torchrun every process is one rank; with --nproc this command starts the ranks
    itself.
    """
    folder = run or Path("runs") / f"{recipe.resolve().parent.name}-{recipe.stem}"
    raise typer.Exit(train_run(recipe, overrides or [], folder, nproc=nproc, fresh=fresh))


def train_run(
    recipe: Path, overrides: list[str], folder: Path, *, nproc: int | None, fresh: bool = False
) -> int:
    """Train in a run folder, as one rank or by starting all of them, and return the exit status."""
    from tst_megatron.training import stopping

    if nproc is None:
        # This process is a rank, and what follows takes half a minute on a busy machine.
        stopping.listen()
    from tst_megatron.data.ready import make_ready, wait_until_ready
    from tst_megatron.training.checkpoints import checkpoint_of
    from tst_megatron.training.launch import launch
    from tst_megatron.training.run_folder import RunFolder, check_run, check_stream

    console = Console()
    rank = _rank_of_environment()
    run = RunFolder(folder)
    checked = _checked(recipe, overrides, 1 if nproc is None and rank is None else nproc)
    if rank in (None, 0):
        check_run(checked, run, fresh=fresh)
        make_ready(checked.stream, checked.corpora, console)
        run.prepare(checked)
    else:
        # In the order of the first rank, whose indexes may take it hours.
        wait_until_ready(checked.stream, checked.corpora)
        run.wait_until_prepared()
        check_run(checked, run, fresh=False)
    if run.is_finished(checked):
        if rank in (None, 0):
            for note in run.repair(checked).notes:
                console.print(note, highlight=False, markup=False, soft_wrap=True)
            run.write_finished(checked)
        console.print(f"{folder}: this run is finished.", highlight=False, soft_wrap=True)
        return 0
    if rank in (None, 0) and (step := run.find_start(checked).step):
        check_stream(checked, checkpoint_of(run.checkpoints, step))
    if nproc is not None:
        _announce(checked, console)
        command = ["train", str(recipe), *overrides, "--run-folder", str(folder)]
        return launch(command, num_processes=nproc, logs=run.logs, console=console)

    from tst_megatron.training.pretrain import pretrain, redirect_output_to

    if rank is None:
        _announce(checked, console)
        rank = _be_the_only_rank()
    start = run.repair(checked) if rank == 0 else None
    try:
        console = redirect_output_to(str(run.log(rank)))
        return pretrain(checked, run, start=start, console=console)
    except (ValueError, OSError) as error:
        # The input was checked above; this is a fault, and `main` takes these for bad input.
        raise RuntimeError("training failed") from error


@data_app.command("tokenizer")
def data_tokenizer(
    inputs: Annotated[list[Path], typer.Argument(help="Texts to learn from, JSONL files.")],
    output: Annotated[Path, typer.Option(help="Where the SentencePiece model goes.")],
    vocab_size: Annotated[int, typer.Option(help="Pieces, special ones included.")],
    text_key: Annotated[str, typer.Option(help="Key of the text in each JSON line.")] = "text",
) -> None:
    """Train a SentencePiece tokenizer."""
    from tst_megatron.data.encode import texts
    from tst_megatron.data.tokenizer import train_sentencepiece

    train_sentencepiece(texts(inputs, text_key=text_key), output, vocab_size=vocab_size)
    typer.echo(f"{output}: {vocab_size} pieces")


@data_app.command("prepare")
def data_prepare(
    inputs: Annotated[list[Path], typer.Argument(help="Texts, JSONL files (also .gz and .zst).")],
    tokenizer: Annotated[Path, typer.Option(help="SentencePiece model.")],
    output: Annotated[Path, typer.Option(help="Folder for .bin, .idx and manifest.json.")],
    text_key: Annotated[str, typer.Option(help="Key of the text in each JSON line.")] = "text",
    held_out_fraction: Annotated[
        float, typer.Option(help="Share of documents kept for validation, 0-1.")
    ] = 0.01,
    test_fraction: Annotated[
        float, typer.Option(help="Share of documents kept for one test after the last step, 0-1.")
    ] = 0.0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that tokenise; default: one per core.")
    ] = None,
) -> None:
    """Tokenise text once, into the form that a recipe's data: block names."""
    from tst_megatron.data.prepare import prepare

    manifest = prepare(
        inputs,
        tokenizer,
        output,
        text_key=text_key,
        held_out_fraction=held_out_fraction,
        test_fraction=test_fraction,
        workers=workers,
        console=Console(),
    )
    verb = "is up to date" if manifest.reused else "is prepared"
    typer.echo(
        f"{output} {verb}: {manifest.train.tokens:,} tokens to train on, "
        f"{manifest.validation.tokens:,} held out"
    )


@data_app.command("index")
def data_index(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Build the indexes of a recipe's corpora, so that no job waits for them."""
    from tst_megatron.data.ready import make_ready

    console = Console()
    checked = _checked(recipe, overrides, None)
    num_built = make_ready(checked.stream, checked.corpora, console)
    for line in checked.stream.corpus_lines():
        console.print(line, highlight=False, soft_wrap=True)
    verb = "built" if num_built else "already there and whole"
    console.print(f"indexes: {num_built or 'all'} {verb}", highlight=False)


@data_app.command("trace")
def data_trace(
    recipe: RecipePath,
    overrides: Overrides = None,
    step: Annotated[
        int, typer.Option(min=0, help="Steps completed before the one that is shown.")
    ] = 0,
) -> None:
    """Show what a step reads: where each sample starts, the phase, and raw tokens so far."""
    from tst_megatron.data.ready import make_ready
    from tst_megatron.data.stream import TokenStream
    from tst_megatron.data.trace import trace_lines

    console = Console()
    checked = _checked(recipe, overrides, None)
    phase = checked.schedule.phase_at(step)
    make_ready(checked.stream, checked.corpora, console)
    console.print(
        f"after {step} steps: {phase.name}, bag size {phase.bag_size}, "
        f"{checked.schedule.raw_tokens_before(step):,} raw tokens read before",
        highlight=False,
        soft_wrap=True,
    )
    stream = TokenStream(checked.stream, checked.corpora)
    for line in trace_lines(stream, checked.corpora, step):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's checkpoints/ or one iter_ folder.")],
    output: Annotated[Path, typer.Argument(help="New folder in Hugging Face format.")],
    iteration: Annotated[
        int | None, typer.Option(help="Which checkpoint; default: the newest.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    verify: Annotated[
        bool, typer.Option(help="Reload it and compare weights and logits with Megatron's.")
    ] = True,
) -> None:
    """Write a checkpoint in Hugging Face format, tokenizer included, and prove it."""
    import torch

    from tst_megatron.hf.export import export as export_checkpoint

    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if dtype not in types:
        raise ValueError(f"--dtype {dtype} is none of {', '.join(types)}")
    console = Console()
    report = export_checkpoint(
        checkpoint,
        output,
        iteration=iteration,
        dtype=types[dtype],
        verify=verify,
        on_progress=lambda text: console.print(text, highlight=False, markup=False),
    )
    console.print(
        f"step {report.iteration}: {report.num_parameters:,} parameters in {report.num_files} "
        f"files; tokenizer: {report.tokenizer}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if report.verification is not None:
        console.print(
            f"logits within {report.verification.max_logit_difference:.1e} of Megatron's, "
            f"{report.verification.num_tensors} tensors bit for bit",
            highlight=False,
        )


@checkpoint_app.command("verify")
def checkpoint_verify(
    folder: Annotated[Path, typer.Argument(help="A run, its checkpoints/ or one iter_ folder.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at the files and their sizes; read no tensor.")
    ] = False,
) -> None:
    """Read checkpoints and say which are whole; status 2 if one is not."""
    from tst_megatron.report.checkpoints import verify

    raise typer.Exit(0 if verify(folder, deep=not quick, console=Console()) else BAD_INPUT)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("quickstart"),
    short: Annotated[
        bool, typer.Option("--short", help="A few steps only: shows the chain, learns nothing.")
    ] = False,
) -> None:
    """See the whole chain in minutes: text, tokenizer, both phases, export, generation."""
    from tst_megatron.quickstart import quickstart as run_quickstart

    raise typer.Exit(run_quickstart(folder, short=short, console=Console()))


def _checked(recipe: Path, overrides: list[str] | None, nproc: int | None) -> CheckedRecipe:
    loaded = load_recipe(recipe, overrides or [])
    if loaded.profile == "cpu":
        # Before Megatron is imported for the checks.
        from tst_megatron.host import cpu

        if not cpu.is_needed():
            raise RecipeError(
                [
                    "profile: cpu on a machine with a GPU. Use profile=null, or hide the GPU with "
                    "CUDA_VISIBLE_DEVICES= if the run is meant for the CPU"
                ]
            )
        cpu.install()
    from tst_megatron.check import check_recipe

    return check_recipe(loaded, world_size=nproc)


def _announce(checked: CheckedRecipe, console: Console) -> None:
    for line in checked.plan():
        console.print(line, highlight=False, soft_wrap=True)
    for warning in checked.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)


def _rank_of_environment() -> int | None:
    """This process's rank, from torchrun's variables or srun's; None outside a job.

    Raises:
        RecipeError: the ranks cannot find each other.
    """
    if "RANK" not in os.environ and "SLURM_STEP_ID" not in os.environ:
        return None
    for ours, slurms in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        if ours not in os.environ and slurms in os.environ:
            os.environ[ours] = os.environ[slurms]
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RecipeError(
            [
                f"{' and '.join(missing)}: not set, and the ranks of a job find each other by "
                "them. Export the first node's name and a free port before srun"
            ]
        )
    return int(os.environ["RANK"])


def _be_the_only_rank() -> int:
    from tst_megatron.training.launch import free_port

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    return 0
