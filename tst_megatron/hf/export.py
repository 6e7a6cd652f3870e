"""Export a Megatron checkpoint to a Hugging Face folder that proves itself before it appears."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tst_megatron.checkpoint.open import TrainedWeights, find_checkpoint, open_checkpoint
from tst_megatron.hf.families.known import family_of_args
from tst_megatron.hf.model_card import model_card
from tst_megatron.hf.model_folder.weight_files import check_is_free, write_json, write_weights
from tst_megatron.hf.tokenizer.files import (
    GENERATION,
    NO_TOKENIZER,
    find_tokenizer,
    write_tokenizer,
)
from tst_megatron.hf.verify import VerificationReport
from tst_megatron.hf.verify import verify as verify_export
from tst_megatron.hf.weights import rules, shapes, split
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.machine.disk import check_room
from tst_megatron.system.packages import package_version


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export wrote."""

    output: Path
    iteration: int
    """Optimizer steps behind the weights."""
    dtype: torch.dtype
    num_parameters: int
    num_bytes: int
    """Of the weight files."""
    num_files: int
    """Weight files."""
    vocab_size: int
    num_padding_rows: int
    """Rows of the embedding left out: Megatron's padding of the vocabulary."""
    tokenizer: str
    """Where the tokenizer files come from."""
    tokenizer_note: str | None
    """What the owner of the model should know of them."""
    verification: VerificationReport | None
    """None when it was not asked for."""
    seconds: float


def export(
    checkpoint: Path,
    output: Path,
    *,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    compute: bool | None = None,
    text: str | None = None,
    tokenizer: Path | None = None,
    with_tokenizer: bool = True,
    on_progress: Callable[[str], None] | None = None,
    on_weight: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write a trained model as transformers, vLLM and lm-eval read it.

    Everything is written beside the output and renamed to it at the end, so a folder of that name
    is a whole and, unless told otherwise, a proven export. One weight and one file of the output
    are in memory at a time, except where logits are compared.

    Args:
        checkpoint: a folder of Megatron checkpoints, or one ``iter_`` folder.
        output: folder that does not exist or is empty.
        iteration: which checkpoint, in optimizer steps; the newest when not given.
        dtype: type of the exported weights; the type they were trained in when not given.
        verify: compare the export with the checkpoint.
        compute: as for ``verify.verify``.
        text: as for ``verify.verify``.
        tokenizer: its file or folder, where the checkpoint's own is not to be used.
        with_tokenizer: write the tokenizer's files too.
        on_progress: told each step in a short sentence.
        on_weight: told the bytes written so far and the bytes to write.

    Raises:
        ValueError: no such checkpoint or tokenizer, no form in a known family, or an output that
            is not empty.
        OSError: the disk has no room for it.
        RuntimeError: the export is not the trained model, or its tokenizer gives other ids;
            nothing is left behind.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    check_is_free(output)
    say("reading the saved arguments")
    # Found once: a run that goes on may move its tracker while this reads.
    opened = open_checkpoint(find_checkpoint(checkpoint, iteration))
    args = opened.args
    family = family_of_args(args)
    family.check(args)
    dtype = dtype or args.params_dtype
    found = (
        find_tokenizer(args, opened.folder.parent, tokenizer) if with_tokenizer else NO_TOKENIZER
    )
    config = family.config_from_args(
        args,
        vocab_size=getattr(args, "vocab_size", None) or found.vocab_size,
        dtype=dtype,
        bos_token_id=found.bos_token_id,
        eos_token_id=found.eos_token_id,
    )
    # Without it transformers 5.14 takes the tokenizer of any large vocabulary for an old one of
    # Mistral's, and advises an option that changes its ids.
    config["transformers_version"] = package_version("transformers")
    weights = TrainedWeights(opened)
    sizes = _sizes(config, dtype)
    check_room(output.absolute(), sum(sizes.values()), "the export")
    with folder_appearing_whole(output) as beside:
        write_json(beside / "config.json", config)
        if found.generation:
            shutil.copyfile(found.generation, beside / GENERATION)
        else:
            write_json(beside / GENERATION, _generation_config(config))
        # Before the weights, which take long: it may be refused.
        write_tokenizer(found, beside)
        say(f"writing {dtype} weights")
        tensors = _counted(_exported(weights, config, dtype), sum(sizes.values()), on_weight)
        num_files = write_weights(beside, tensors, sizes)
        say("comparing transformers with Megatron" if verify else "not verified, as asked")
        proof = verify_export(weights, beside, compute=compute, text=text) if verify else None
        num_parameters = sum(sizes.values()) // dtype.itemsize
        card = model_card(opened, config, num_parameters=num_parameters, verification=proof)
        (beside / "README.md").write_text(card, encoding="utf-8")
    say(f"wrote {output}")
    return ExportReport(
        output=output,
        iteration=opened.iteration,
        dtype=dtype,
        num_parameters=num_parameters,
        num_bytes=sum(sizes.values()),
        num_files=num_files,
        vocab_size=config["vocab_size"],
        num_padding_rows=args.padded_vocab_size - config["vocab_size"],
        tokenizer=found.description,
        tokenizer_note=found.note,
        verification=proof,
        seconds=time.perf_counter() - start,
    )


def _sizes(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, int]:
    """Bytes of every tensor of the export."""
    return {
        name: torch.Size(shape).numel() * dtype.itemsize
        for rule in rules(config)
        for name, shape in zip(rule.hf, shapes(rule, config), strict=True)
    }


def _exported(
    weights: TrainedWeights, config: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    left_over = set(weights.names()) - {rule.megatron for rule in rules(config)}
    if left_over:
        raise RuntimeError(
            f"Weights without a place in {config['architectures'][0]}: "
            f"{', '.join(sorted(left_over))}. "
            "The model has a part that its saved arguments do not tell of."
        )
    for rule in rules(config):
        parts = split(rule.form, weights.read(rule.megatron), config)
        # Copies: safetensors refuses tensors that share memory, as two parts of one tensor do.
        copies = [part.to(dtype, copy=True).contiguous() for part in parts]
        yield from zip(rule.hf, copies, strict=True)


def _counted(
    tensors: Iterator[tuple[str, Tensor]], total: int, on_weight: Callable[[int, int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    done = 0
    for name, tensor in tensors:
        yield name, tensor
        done += tensor.nbytes
        if on_weight is not None:
            on_weight(done, total)


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids only: a base model has no sampling settings of its own."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    return {"_from_model_config": True, **ids}
