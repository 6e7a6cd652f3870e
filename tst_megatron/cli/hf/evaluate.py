"""``tst-megatron evaluate`` and ``evaluate-data``: downstream tasks through lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import outside_runs

Tasks = Annotated[
    str, typer.Option(help="paper, or tasks, groups and tags of lm-eval, separated by commas.")
]


def evaluate(
    hf_dir: Annotated[Path, typer.Argument(help="A model in Hugging Face format.")],
    tasks: Tasks = "paper",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first items of each task: a trial.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in one forward pass.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (config.json's), fp32 or bf16.")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="New JSON file. Default: HF_DIR-evaluation.json.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of evaluate-data; asks no network. Default: lm-eval downloads."),
    ] = None,
    special_tokens_in_text: Annotated[
        bool,
        typer.Option(
            "--special-tokens-in-text",
            help="Read text that spells a special token as its id, as `data prepare` was told to.",
        ),
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Runs of the paper beside ours. Default: 10b-base and 10b-tst."),
    ] = None,
) -> None:
    """Evaluate a model on the paper's tasks, zero-shot, and show the paper's numbers beside."""
    _need_lm_eval()
    from tst_megatron.hf.evaluate.paper import RUNS
    from tst_megatron.hf.evaluate.results import table
    from tst_megatron.hf.evaluate.run import Settings, stay_offline
    from tst_megatron.hf.evaluate.run import evaluate as run_evaluation

    compare = compare or ["10b-base", "10b-tst"]
    if unknown := [run for run in compare if run not in RUNS]:
        raise ValueError(f"--compare {', '.join(unknown)}: the paper's are {', '.join(RUNS)}")
    if data is not None:
        stay_offline()
    console = Console()
    found = run_evaluation(
        hf_dir,
        output or hf_dir.resolve().with_name(f"{hf_dir.resolve().name}-evaluation.json"),
        Settings(
            tasks=tasks,
            limit=limit,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            data=data,
            special_tokens_in_text=special_tokens_in_text,
        ),
        on_progress=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
    )
    console.print(table(found, compare))


def evaluate_data(
    output: Annotated[
        Path,
        typer.Argument(
            help="Folder for the data; an existing one is completed.", callback=outside_runs
        ),
    ],
    tasks: Tasks = "paper",
) -> None:
    """Fetch task data where there is a connection, for machines that have none."""
    _need_lm_eval()
    from tst_megatron.hf.evaluate.download import download

    console = Console()
    num_written = download(
        tasks,
        output,
        on_progress=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
    )
    console.print(f"{output}: {num_written} files written", highlight=False, soft_wrap=True)


def _need_lm_eval() -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise ValueError("lm-eval is not installed: pip install 'tst-megatron[eval]'")
