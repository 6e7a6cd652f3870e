"""Run the complete chain on one machine in minutes, by the commands that a cluster run uses.

Real text without a download (Python's own sources), a tokenizer, both phases of training, an export
that is proven, a generated continuation and a picture of the losses. What is already there and
valid is reused.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import tst_megatron
from tst_megatron.data.manifest import Manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.megatron.cpu import host
from tst_megatron.megatron.cpu.arguments import WITHOUT_TRANSFORMER_ENGINE
from tst_megatron.system.packages import package_version
from tst_megatron.system.processes import signals
from tst_megatron.system.processes.lock import held
from tst_megatron.training.report.metrics_file import BAG_LOSS, VALIDATION_LOSS, read_metrics
from tst_megatron.training.run.folder import RunFolder

VOCAB_SIZE = 4096
HELD_OUT_FRACTION = 0.03
PROMPT = "def read_lines(path):\n    with open("

SHORT = (
    "train-iters=20",
    "lr-warmup-iters=2",
    "lr-wsd-decay-iters=5",
    "eval-interval=10",
    "eval-iters=1",
    "save-interval=20",
)
"""Overrides that show the chain and learn nothing."""

GPU = ("profile=null", "bf16=true", "expert-model-parallel-size=1")
"""Overrides for one process on one GPU."""

GPU_WITHOUT_TRANSFORMER_ENGINE = tuple(
    f"{key}={json.dumps(value).strip(chr(34))}" for key, value in WITHOUT_TRANSFORMER_ENGINE.items()
)


def quickstart(folder: Path, *, short: bool, console: Console) -> int:
    """Run the chain in a folder and return the exit status.

    Args:
        folder: where everything goes; made if it is missing.
        short: a few steps only, in a run folder of its own.
        console: where the story is told.
    """
    recipe = find_recipe()
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with held(folder, say=say):
        return _run_chain(recipe, folder, short=short, console=console)


def _run_chain(recipe: Path, folder: Path, *, short: bool, console: Console) -> int:
    console.rule("1. Text", align="left")
    manifest = _prepare_text(folder, console)
    console.rule("2. Training", align="left")
    # Other text makes another run: a run folder keeps the text that it was started with.
    name = f"run-{manifest.train.bin_sha256[:8]}"
    run = RunFolder(folder / (f"{name}-short" if short else name))
    overrides = [f"data={json.dumps({str(manifest.path.parent): 1.0})}", *(SHORT if short else ())]
    status = _train(recipe, overrides, run, console)
    if status:
        return status
    console.rule("3. Export to Hugging Face format", align="left")
    exported = _export(run, run.path / "hf", console)
    console.rule("4. Generation", align="left")
    _generate(exported, console)
    console.rule("5. Result", align="left")
    return _summarise(run, manifest, exported, short=short, console=console)


def run_command(arguments: list[str], console: Console) -> int:
    """Run a command as a user would, show it, and return its exit status."""
    console.print(
        shlex.join(["tst-megatron", *arguments]), highlight=False, markup=False, soft_wrap=True
    )
    # Ctrl-C reaches the command too, which saves a checkpoint and ends; so it does without us.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(
            [sys.executable, "-m", "tst_megatron", *arguments],
            check=False,
            preexec_fn=partial(signals.end_with, os.getpid(), signal.SIGTERM),
        ).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def find_recipe(name: str = "quickstart/tst.yaml") -> Path:
    """Return a recipe of ``examples/``, in a checkout or in an installed package.

    Raises:
        FileNotFoundError: it is in neither.
    """
    package = Path(tst_megatron.__file__).parent
    for place in (package.parent / "examples", package / "examples"):
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"examples/{name} is missing: is this a whole checkout?")


def _prepare_text(folder: Path, console: Console) -> Manifest:
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.model"
    facts = write_standard_library_corpus(corpus)
    console.print(
        f"{facts.num_documents} source files of Python {facts.python_version}, "
        f"{facts.num_text_bytes / 1e6:.1f} MB",
        highlight=False,
        soft_wrap=True,
    )
    known = folder / "corpus.sha256"
    is_same = known.exists() and known.read_text() == facts.sha256
    if is_same and tokenizer.exists() and len(load_sentencepiece(tokenizer)) == VOCAB_SIZE:
        console.print(f"reusing {tokenizer}", highlight=False)
    else:
        train_sentencepiece(texts([corpus]), tokenizer, vocab_size=VOCAB_SIZE)
        known.write_text(facts.sha256)
        console.print(f"trained {tokenizer}: {VOCAB_SIZE} pieces", highlight=False)
    # A folder of its own for each text and tokenizer: prepared text is never overwritten.
    prepared = folder / f"text-{facts.sha256[:8]}"
    manifest = prepare(
        [corpus], tokenizer, prepared, held_out_fraction=HELD_OUT_FRACTION, workers=2
    )
    verb = "reusing" if manifest.reused else "prepared"
    console.print(
        f"{verb} {prepared}: {manifest.train.tokens:,} tokens to train on, "
        f"{manifest.validation.tokens:,} held out",
        highlight=False,
        soft_wrap=True,
    )
    return manifest


def _train(recipe: Path, overrides: list[str], run: RunFolder, console: Console) -> int:
    """Start ``tst-megatron train`` as a user would: two CPU processes, or one on the GPU."""
    if host.is_needed():
        ranks = 2
    else:
        ranks = 1
        overrides = [*overrides, *GPU]
        if package_version("transformer-engine") is None:
            overrides += GPU_WITHOUT_TRANSFORMER_ENGINE
    arguments = [
        "train",
        str(recipe),
        *overrides,
        "--run-folder",
        str(run.path),
        "--nproc",
        str(ranks),
    ]
    return run_command(arguments, console)


def _export(run: RunFolder, output: Path, console: Console) -> Path:
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None, "a finished run has a checkpoint"
    if output.exists() and output.stat().st_mtime > checkpoint.stat().st_mtime:
        console.print(f"reusing {output}", highlight=False)
        return output
    from tst_megatron.hf.export import export

    report = export(checkpoint, output, dtype=torch.float32, compute=True)
    proof = report.verification
    assert proof is not None and proof.computed is not None
    computed = proof.computed
    console.print(
        f"{output}: {report.num_parameters:,} parameters. Reloaded strictly in transformers: "
        f"{proof.num_tensors} tensors bit for bit, logits up to {computed.max_logit:.1f} within "
        f"{computed.max_logit_difference:.1e} of Megatron's, {computed.num_greedy_tokens} "
        "greedy tokens the same",
        highlight=False,
        soft_wrap=True,
    )
    return output


def _generate(exported: Path, console: Console) -> None:
    from tst_megatron.hf.generate import generate_text

    console.print(PROMPT, style="bold", end="", highlight=False, markup=False)
    console.print(generate_text(exported, PROMPT, 32), highlight=False, markup=False)


def _summarise(
    run: RunFolder, manifest: Manifest, exported: Path, *, short: bool, console: Console
) -> int:
    """Draw and print the losses; a full run must have learnt."""
    from tst_megatron.training.report.losses import PICTURE, draw_losses

    entropy = manifest.unigram_entropy_nats
    picture = run.report / PICTURE
    draw_losses(run.metrics, picture, unigram_entropy_nats=entropy)
    bag_loss = last_tenth(read_metrics(run.metrics), BAG_LOSS)
    validation = read_metrics(run.metrics, event="validation")[-1][VALIDATION_LOSS]
    for line in (
        f"unigram entropy of the text: {entropy:.2f} nats",
        f"bag loss, last 10% of superposition: {bag_loss:.2f}",
        f"validation loss (next token, held-out text): {validation:.2f}",
        f"losses: {picture}",
        f"model:  {exported}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    if not short and not (bag_loss < entropy and validation < entropy - 1):
        console.print("The model learnt less than expected: this is a fault.", style="red")
        return 1
    console.print(f"Done. Everything is in {run.path}", highlight=False, soft_wrap=True)
    return 0


def last_tenth(steps: list[dict[str, Any]], name: str) -> float:
    """Mean of a curve over the last 10% of the steps that have it."""
    values = [row[name] for row in steps if row.get(name) is not None]
    tail = values[-max(1, len(values) // 10) :]
    return float(sum(tail) / len(tail))
