"""Models in Hugging Face format: commands ``export``, ``import``, ``generate``, ``quantize``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from tst_megatron.hf.verify import VerificationReport

Verify = Annotated[
    bool, typer.Option(help="Compare every weight bit for bit, and what both models compute.")
]
Logits = Annotated[
    bool | None,
    typer.Option(
        "--logits/--no-logits",
        help="Compare logits too; default: where both models fit into memory in float32.",
        show_default=False,
    ),
]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run, its checkpoints/ or one iter_ folder.")
    ],
    output: Annotated[Path, typer.Argument(help="New folder in Hugging Face format.")],
    iteration: Annotated[
        int | None, typer.Option(help="Which checkpoint; default: the newest.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "bf16",
    verify: Verify = True,
    logits: Logits = None,
    text: Annotated[
        Path | None, typer.Option(help="Compare logits on this text; default: random tokens.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Its file or folder; default: what the run was trained with."),
    ] = None,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Write the weights and configuration alone.")
    ] = False,
) -> None:
    """Write a checkpoint in Hugging Face format, with tokenizer and model card, and prove it."""
    from tst_megatron.hf.export import export as export_checkpoint

    wanted = _dtype(dtype)
    console = Console()
    with _progress(console) as (say, count):
        report = export_checkpoint(
            checkpoint,
            output,
            iteration=iteration,
            dtype=wanted,
            verify=verify,
            compute=logits,
            text=text.read_text(encoding="utf-8") if text else None,
            tokenizer=tokenizer,
            with_tokenizer=not no_tokenizer,
            on_progress=say,
            on_weight=count,
        )
    _print(
        console,
        f"step {report.iteration}: {report.num_parameters:,} parameters in {report.num_files} "
        f"files; tokenizer: {report.tokenizer}",
    )
    if report.tokenizer_note:
        _print(console, report.tokenizer_note)
    _print_proof(console, report.verification)


def import_(
    hf_dir: Annotated[Path, typer.Argument(help="A model in Hugging Face format.")],
    output: Annotated[Path, typer.Argument(help="New folder for the checkpoint and model.yaml.")],
    tensor_parallel: Annotated[
        int | None,
        typer.Option(help="Tensor-parallel size to train in; default: each that needs no padding."),
    ] = None,
    verify: Verify = True,
    logits: Logits = None,
) -> None:
    """Write a Hugging Face model as a checkpoint that training can start from, in any layout."""
    from tst_megatron.hf.importing import MODEL, import_model
    from tst_megatron.recipe.padding import sizes_without_padding

    console = Console()
    with _progress(console) as (say, count):
        report = import_model(
            hf_dir,
            output,
            tensor_parallel=tensor_parallel,
            verify_weights=verify,
            compute=logits,
            on_progress=say,
            on_weight=count,
        )
    _print(
        console,
        f"{report.family}: {report.num_parameters:,} parameters, {report.dtype}; tokenizer: "
        f"{report.tokenizer}",
    )
    _print_proof(console, report.verification)
    sizes = ", ".join(map(str, sizes_without_padding(report.vocab_size)))
    _print(
        console,
        f"{report.vocab_size:,} rows in each table of tokens, none of padding, also at "
        f"tensor-parallel sizes {sizes}; in others `check` says what padding costs",
    )
    _print(console, f"train it with `base: {output / MODEL}` in a recipe")


def generate(
    hf_dir: Annotated[Path, typer.Argument(help="A model in Hugging Face format.")],
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    num_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 64,
    dtype: Annotated[
        str | None, typer.Option(help="fp32 or bf16; default: as the files have it.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; 1 draws by the probabilities.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens with this share together; default: all."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws; default: a new one, which is printed.")
    ] = None,
) -> None:
    """Continue a text with an exported model, with the likeliest token or drawn ones."""
    from tst_megatron.hf.generate import Sampling, generate_text

    console = Console()
    continuation = generate_text(
        hf_dir,
        prompt,
        num_tokens,
        dtype=_dtype(dtype) if dtype else None,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        on_progress=lambda line: typer.echo(line, err=True),
    )
    console.print(prompt, style="bold", end="", highlight=False, markup=False, soft_wrap=True)
    console.print(continuation, highlight=False, markup=False, soft_wrap=True)


def quantize(
    hf_dir: Annotated[Path, typer.Argument(help="A model in Hugging Face format.")],
    output: Annotated[Path, typer.Argument(help="New folder for the quantised one.")],
    format: Annotated[str, typer.Option(help="fp8 or nvfp4.")],
    text: Annotated[Path, typer.Option(help="Text to calibrate on, JSONL (also .gz and .zst).")],
    text_key: Annotated[str, typer.Option(help="Key of the text in each JSON line.")] = "text",
    num_sequences: Annotated[int, typer.Option(min=1, help="Sequences to calibrate on.")] = 512,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 512,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Quantise a model for vLLM and TensorRT-LLM, and prove what was written."""
    from tst_megatron.hf.quantize.quantize import Calibration
    from tst_megatron.hf.quantize.quantize import quantize as quantize_model

    console = Console()
    report = quantize_model(
        hf_dir,
        output,
        format=format,
        calibration=Calibration(
            text=text,
            text_key=text_key,
            num_sequences=num_sequences,
            sequence_length=sequence_length,
        ),
        device=device,
        on_progress=lambda said: console.print(said, highlight=False, markup=False, soft_wrap=True),
    )
    proof = report.proof
    for line in (
        f"{report.algorithm}: {report.num_bytes / 1e6:,.1f} MB, "
        f"{report.num_bytes_before / 1e6:,.1f} MB before",
        f"{proof.num_quantised} weights within {proof.largest_error_share:.2f} of the largest "
        f"rounding error of the format, {proof.num_equal} tensors bit for bit",
        f"rounded weights alone move logits by {100 * proof.relative_logit_difference:.1f}% (root "
        f"mean square; at most {proof.max_logit_difference:.3g}, largest logit "
        f"{proof.max_logit:.3g}); the best token is the same at "
        f"{100 * proof.same_best_fraction:.1f}% of positions",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _dtype(name: str) -> torch.dtype:
    import torch

    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name not in types:
        raise ValueError(f"--dtype {name} is none of {', '.join(types)}")
    return types[name]


@contextmanager
def _progress(
    console: Console,
) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Yield a function that says what is done now, and one that moves a bar of the weights."""
    bar = Progress(
        TextColumn("weights"),
        BarColumn(),
        "{task.percentage:3.0f}%",
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("weights", total=None, visible=False)

        def count(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=done < total)

        yield lambda line: _print(console, line), count


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_proof(console: Console, proof: VerificationReport | None) -> None:
    if proof is None:
        return
    line = f"{proof.num_tensors} tensors bit for bit"
    if proof.computed is not None:
        line += f", logits within {proof.computed.max_logit_difference:.1e} of each other"
        if proof.computed.num_padding_columns:
            line += (
                f"; {proof.computed.num_padding_columns} padding columns are left out, which took "
                f"{proof.computed.padding_cost:.2g} nats of the loss"
            )
    else:
        line += f"; {proof.reason}"
    _print(console, line)
