"""Ask what averaging cost: the command ``audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import outside_runs

Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="BASE_HF TST_HF [MORE_HF]...",
        help="Models in Hugging Face format with one tokenizer; the first is the baseline.",
        show_default=False,
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        help="Held-out text: a prepared folder (its validation split), .jsonl, .parquet, .txt. "
        "Without it, generated probes alone run."
    ),
]
Page = Annotated[
    Path | None, typer.Option("--html", help="Also write one page.", callback=outside_runs)
]
MarginOf = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=NUMBER, the harm that is accepted: loss, slice, gain, accuracy, "
        "calibration, probability, entropy, or a probe's name."
    ),
]
Losses = Annotated[
    list[float] | None,
    typer.Option(help="Loss of each model in their order, nats. Default: measured on --text."),
]
BaselineSeeds = Annotated[
    list[Path] | None,
    typer.Option(help="Another seed of the baseline: measures how far seeds are apart."),
]
BagSize = Annotated[
    int | None,
    typer.Option(help="Tokens in a bag. Default: as the model card says; else 4."),
]
Items = Annotated[int, typer.Option(min=8, help="Items of each generated probe.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Held-out tokens to read.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences in one forward pass.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
]
ScoresFolder = Annotated[
    Path,
    typer.Option(
        help="Folder of scores, from which an interrupted audit goes on.",
        callback=outside_runs,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print everything as one JSON object instead.")
]


def audit(
    models: Models,
    text: HeldOut = None,
    html: Page = None,
    margin: MarginOf = None,
    loss: Losses = None,
    baseline_seed: BaselineSeeds = None,
    bag_size: BagSize = None,
    items: Items = 300,
    max_tokens: MaxTokens = 65_536,
    seed: Seed = 1,
    batch_size: BatchSize = 16,
    device: Device = None,
    scores: ScoresFolder = Path("audit-scores"),
    is_json: AsJson = False,
) -> None:
    """Say where a model is worse than another at equal loss: order, recall, calibration."""
    from tst_megatron.audit.audit import Settings
    from tst_megatron.audit.audit import audit as run_audit
    from tst_megatron.audit.margins import parse_margins
    from tst_megatron.audit.report.keys import as_keys
    from tst_megatron.audit.report.page import check_page, write_page
    from tst_megatron.audit.report.terminal import show
    from tst_megatron.system.progress import document_progress

    seeds = baseline_seed or []
    if html is not None:
        check_page(html, [*models, *seeds, *([text] if text else [])])
    settings = Settings(
        margins=parse_margins(margin or []),
        text=text,
        bag_size=bag_size,
        baseline_seeds=seeds,
        losses=loss or [],
        num_items=items,
        max_tokens=max_tokens,
        seed=seed,
        batch_size=batch_size,
        device=device,
        scores=scores,
    )
    # Standard output is for the result alone.
    told = Console(stderr=True)
    found = run_audit(
        models,
        settings,
        say=lambda line: told.print(line, highlight=False, markup=False, soft_wrap=True),
        bar=lambda what, total: document_progress(told, what, total),
    )
    if html is not None:
        write_page(found, html)
    if is_json:
        typer.echo(json.dumps(as_keys(found), allow_nan=False))
    else:
        show(found, Console())
    if html is not None:
        told.print(f"page: {html}", markup=False, soft_wrap=True)
