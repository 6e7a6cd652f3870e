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

from tst_megatron.checkpoint.reader.weights import TrainedWeights
from tst_megatron.hf.model_card import model_card
from tst_megatron.hf.model_folder.weight_files import check_is_free, write_json, write_weights
from tst_megatron.hf.tokenizer.files import GENERATION, write_tokenizer
from tst_megatron.hf.trained_model import TrainedModel, open_trained_model
from tst_megatron.hf.verify import VerificationReport
from tst_megatron.hf.verify import verify as verify_export
from tst_megatron.hf.weights import rules, shapes, split
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.machine.disk import check_room
from tst_megatron.system.packages import package_version

OnProgress = Callable[[str], None]
OnWeight = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """The facts of an export, for its command to print."""

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
    """The origin of the tokenizer files."""
    tokenizer_note: str | None
    """A sentence about them that the owner of the model should read."""
    verification: VerificationReport | None
    """None when it was not asked for."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The export as it will be, before anything is written."""

    config: dict[str, Any]
    """Its config.json."""
    dtype: torch.dtype
    sizes: dict[str, int]
    """Bytes of every tensor, by name, in the order in which they are written."""

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def num_parameters(self) -> int:
        return self.num_bytes // self.dtype.itemsize


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
    on_progress: OnProgress | None = None,
    on_weight: OnWeight | None = None,
) -> ExportReport:
    """Write a trained model as transformers, vLLM and lm-eval read it.

    A folder of the output's name is a complete and, unless told otherwise, a proven export. One
    weight and one file are in memory at a time, except where logits are compared.

    Args:
        checkpoint: as for ``open_trained_model``.
        output: folder that does not exist or is empty.
        iteration: as for ``open_trained_model``.
        dtype: type of the exported weights; the type they were trained in when not given.
        verify: compare the export with the checkpoint.
        compute: as for ``verify.verify``.
        text: as for ``verify.verify``.
        tokenizer: as for ``open_trained_model``.
        with_tokenizer: as for ``open_trained_model``.
        on_progress: told each step in a short sentence.
        on_weight: told the bytes written so far and the bytes to write.

    Raises:
        ValueError: the checkpoint cannot be exported, or the output is not empty.
        OSError: the disk has no room for it.
        RuntimeError: the export is not the trained model, or its tokenizer gives other ids;
            nothing is left behind.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    check_is_free(output)
    # 1. Open the checkpoint, once: arguments, family, tokenizer, weights.
    say("reading the saved arguments")
    trained = open_trained_model(
        checkpoint, iteration=iteration, tokenizer=tokenizer, with_tokenizer=with_tokenizer
    )
    # 2. Translate the arguments, and find room on the disk for the tensors.
    plan = _plan(trained, dtype or trained.args.params_dtype)
    check_room(output.absolute(), plan.num_bytes, "the export")
    with folder_appearing_whole(output) as beside:
        # 3. The small files. The tokenizer goes before the weights: it may be refused.
        _write_small_files(trained, plan, beside)
        # 4. The weights, one at a time.
        num_files = _write_weights(trained, plan, beside, say, on_weight)
        # 5. The proof, and the model card that tells of it.
        say("comparing transformers with Megatron" if verify else "not verified, as asked")
        proof = _prove(trained, beside, compute, text) if verify else None
        _write_card(trained, plan, proof, beside)
    say(f"wrote {output}")
    return _report(trained, plan, proof, output, num_files, time.perf_counter() - start)


def _plan(trained: TrainedModel, dtype: torch.dtype) -> _Plan:
    config = trained.family.config_from_args(
        trained.args,
        vocab_size=getattr(trained.args, "vocab_size", None) or trained.tokenizer.vocab_size,
        dtype=dtype,
        bos_token_id=trained.tokenizer.bos_token_id,
        eos_token_id=trained.tokenizer.eos_token_id,
    )
    # Without it transformers 5.14 takes the tokenizer of any large vocabulary for an old one of
    # Mistral's, and advises an option that changes its ids.
    config["transformers_version"] = package_version("transformers")
    sizes = {
        name: torch.Size(shape).numel() * dtype.itemsize
        for rule in rules(config)
        for name, shape in zip(rule.hf, shapes(rule, config), strict=True)
    }
    return _Plan(config=config, dtype=dtype, sizes=sizes)


def _write_small_files(trained: TrainedModel, plan: _Plan, folder: Path) -> None:
    write_json(folder / "config.json", plan.config)
    if trained.tokenizer.generation:
        shutil.copyfile(trained.tokenizer.generation, folder / GENERATION)
    else:
        write_json(folder / GENERATION, _generation_config(plan.config))
    write_tokenizer(trained.tokenizer, folder)


def _write_weights(
    trained: TrainedModel,
    plan: _Plan,
    folder: Path,
    say: OnProgress,
    on_weight: OnWeight | None,
) -> int:
    say(f"writing {plan.dtype} weights")
    tensors = _exported(trained.weights, plan.config, plan.dtype)
    return write_weights(folder, _counted(tensors, plan.num_bytes, on_weight), plan.sizes)


def _prove(
    trained: TrainedModel, folder: Path, compute: bool | None, text: str | None
) -> VerificationReport:
    return verify_export(trained.weights, folder, compute=compute, text=text)


def _write_card(
    trained: TrainedModel, plan: _Plan, proof: VerificationReport | None, folder: Path
) -> None:
    card = model_card(
        trained.checkpoint, plan.config, num_parameters=plan.num_parameters, verification=proof
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _report(
    trained: TrainedModel,
    plan: _Plan,
    proof: VerificationReport | None,
    output: Path,
    num_files: int,
    seconds: float,
) -> ExportReport:
    return ExportReport(
        output=output,
        iteration=trained.checkpoint.iteration,
        dtype=plan.dtype,
        num_parameters=plan.num_parameters,
        num_bytes=plan.num_bytes,
        num_files=num_files,
        vocab_size=plan.config["vocab_size"],
        num_padding_rows=trained.args.padded_vocab_size - plan.config["vocab_size"],
        tokenizer=trained.tokenizer.description,
        tokenizer_note=trained.tokenizer.note,
        verification=proof,
        seconds=seconds,
    )


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
    tensors: Iterator[tuple[str, Tensor]], total: int, on_weight: OnWeight | None
) -> Iterator[tuple[str, Tensor]]:
    done = 0
    for name, tensor in tensors:
        yield name, tensor
        done += tensor.nbytes
        if on_weight is not None:
            on_weight(done, total)


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ids alone: a base model has no sampling settings of its own."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    return {"_from_model_config": True, **ids}
