"""Look at prepared text: ``data index``, ``data trace``, ``data verify`` and ``data inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import Overrides, RecipePath, outside_runs
from tst_megatron.system.exit_status import FAILED


def add_reading_commands(data_app: typer.Typer) -> None:
    """Add the commands of this file to the group ``data``."""
    data_app.command("index")(data_index)
    data_app.command("trace")(data_trace)
    data_app.command("verify")(data_verify)
    data_app.command("inspect")(data_inspect)


def data_index(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Build the indexes of a recipe's corpora, so that no job waits for them."""
    from tst_megatron.training.check.check_recipe import checked_recipe
    from tst_megatron.training.run.indexes import make_ready

    console = Console()
    checked = checked_recipe(recipe, overrides, None)
    num_built = make_ready(checked.stream, checked.corpora, console)
    for line in checked.stream.corpus_lines():
        console.print(line, highlight=False, soft_wrap=True)
    verb = "built" if num_built else "already there and whole"
    console.print(f"indexes: {num_built or 'all'} {verb}", highlight=False)


def data_trace(
    recipe: RecipePath,
    overrides: Overrides = None,
    step: Annotated[
        int, typer.Option(min=0, help="Steps completed before the one that is shown.")
    ] = 0,
) -> None:
    """Show what a step reads: where each sample starts, the phase, and raw tokens so far."""
    from tst_megatron.data.stream.stream import TokenStream
    from tst_megatron.data.stream.trace import trace_lines
    from tst_megatron.training.check.check_recipe import checked_recipe
    from tst_megatron.training.run.indexes import make_ready

    console = Console()
    checked = checked_recipe(recipe, overrides, None)
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


def data_verify(
    prepared: Annotated[
        list[Path], typer.Argument(help="Folders of `data prepare`.", show_default=False)
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Input that the folder was made of; name each, in order, to compare the tokens.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the documents to compare, 0-1; 0.001 if not given."
        ),
    ] = None,
) -> None:
    """Read prepared folders again and say which are whole; status 1 if one is not."""
    from tst_megatron.cli.views.prepared import verify

    is_whole = verify(prepared, Console(), against=against or [], sample=sample)
    raise typer.Exit(0 if is_whole else FAILED)


def data_inspect(
    prepared: Annotated[Path, typer.Argument(help="Folder of `data prepare`.", show_default=False)],
    samples: Annotated[int, typer.Option(min=0, help="Documents to show as text.")] = 3,
    split: Annotated[
        str, typer.Option(help="Whose tokens to look at: train, validation or test.")
    ] = "train",
    seed: Annotated[int, typer.Option(help="Of the choice of documents.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for the distribution of lengths.",
            show_default=False,
            callback=outside_runs,
        ),
    ] = None,
) -> None:
    """Show what a prepared folder holds: lengths, frequent tokens and documents as text."""
    from tst_megatron.cli.views.inspection import draw_lengths, lines
    from tst_megatron.data.manifest import load_manifest
    from tst_megatron.data.verify.inspect import inspect

    found = inspect(load_manifest(prepared), split=split, num_samples=samples, seed=seed)
    for line in lines(found):
        typer.echo(line)
    if picture is not None:
        draw_lengths(found.lengths[split], split, picture)
        typer.echo(f"\n{picture}: lengths of documents, {split}")
