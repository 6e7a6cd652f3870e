"""``tst-megatron quantize``: FP8 and NVFP4 of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
