"""Train two arms of a toy side by side, and compare them: ``tst-megatron quickstart --compare``.

The ordinary arm and that with superposition take as many steps of as many latent positions, so
they cost equally many FLOPs. Both read one stream of Python's and the packages' sources, and
neither reads a text twice. What is already there and valid is reused.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from tst_megatron.cli.quickstart.chain import (
    GPU_WITHOUT_TRANSFORMER_ENGINE,
    find_recipe,
    run_command,
)
from tst_megatron.data.manifest import Manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.standard_library import write_python_corpus
from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.megatron.cpu import host
from tst_megatron.system.files import write_beside
from tst_megatron.system.packages import has_transformer_engine
from tst_megatron.system.processes.lock import held

ARMS = "baseline,tst"
VOCAB_SIZE = 512
NUM_SOURCE_BYTES = 42_000_000
"""Enough for the 19.5M raw tokens that the arm with superposition reads, and what is held out."""
HELD_OUT_FRACTION = 0.02
PAGE = "compare.html"
SHORT = (
    "train-iters=60",
    "lr-warmup-iters=5",
    "lr-wsd-decay-iters=15",
    "eval-interval=15",
    "eval-iters=4",
    "save-interval=60",
)
"""Overrides that show the commands and learn nothing."""

LIMITS = (
    "What this does not show: the model is a thousand times smaller than the paper's smallest, its "
    "text is Python sources alone in a vocabulary of 512, it is one seed, and the learning rate "
    "of the ordinary arm was not swept. At most it shows that the method can win at equal FLOPs "
    "with this code. It says nothing about your model: docs/comparing.md says how to find that out."
)
LIMITS_OF_SHORT = "So few steps show that the commands work, and nothing about the method."


def quickstart_two_arms(folder: Path, *, short: bool, console: Console) -> int:
    """Prepare text, train both arms, compare them, and return the exit status.

    Args:
        folder: where everything goes; made if it is missing.
        short: a few steps only, in a folder of its own.
        console: where the story is told.
    """
    recipe = find_recipe("pilot/toy-tst.yaml")
    folder.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with held(folder, say=say):
        console.rule("1. Text", align="left")
        manifest = _prepare_text(folder, console)
        # Other text makes other runs.
        name = f"two-arms-{manifest.train.bin_sha256[:8]}"
        output = folder / (f"{name}-short" if short else name)
        overrides = [f"data={json.dumps({str(manifest.path.parent): 1.0})}", *_of_this_machine()]
        overrides += SHORT if short else ()
        console.rule("2. Two arms, one core each", align="left")
        sweep = ["sweep", str(recipe), *overrides, "--arms", ARMS, "--output", str(output)]
        status = run_command([*sweep, "--at-once", "2"], console)
        if status:
            return status
        console.rule("3. Comparison", align="left")
        runs = [str(run) for run in sorted((output / "runs").iterdir())]
        status = run_command(["compare", *runs, "--html", str(output / PAGE)], console)
    say(LIMITS_OF_SHORT if short else LIMITS)
    return status


def _prepare_text(folder: Path, console: Console) -> Manifest:
    corpus, tokenizer = folder / "python.jsonl", folder / "tokenizer-512.model"
    facts = write_python_corpus(corpus, num_bytes=NUM_SOURCE_BYTES)
    console.print(
        f"{facts.num_documents} source files of Python {facts.python_version} and of installed "
        f"packages, {facts.num_text_bytes / 1e6:.1f} MB",
        highlight=False,
        soft_wrap=True,
    )
    known = folder / "python.sha256"
    is_same = known.exists() and known.read_text() == facts.sha256
    if not (is_same and tokenizer.exists() and len(load_sentencepiece(tokenizer)) == VOCAB_SIZE):
        train_sentencepiece(
            texts([corpus]), tokenizer, vocab_size=VOCAB_SIZE, max_text_bytes=16_000_000
        )
        write_beside(known, facts.sha256)
    prepared = folder / f"text-512-{facts.sha256[:8]}"
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


def _of_this_machine() -> tuple[str, ...]:
    """Return overrides for a GPU, with Transformer Engine or without; none for the CPU host."""
    if host.is_needed():
        return ()
    if has_transformer_engine():
        return ("profile=bf16",)
    return ("profile=null", "bf16=true", *GPU_WITHOUT_TRANSFORMER_ENGINE)
