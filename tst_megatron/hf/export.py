"""Export a Megatron checkpoint to a Hugging Face folder that proves itself before it appears."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tst_megatron.hf import checkpoint as checkpoints
from tst_megatron.hf import qwen3_moe
from tst_megatron.hf.verify import INDEX, VerificationReport
from tst_megatron.hf.verify import verify as verify_export

SHARD_BYTES = 5_000_000_000
"""Largest size of one safetensors file, unless a single tensor is larger."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


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
    """Where the tokenizer files come from, or why there are none."""
    verification: VerificationReport | None
    """None when it was not asked for."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokenizer:
    source: Path | None
    description: str
    vocab_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


def export(
    checkpoint: Path,
    output: Path,
    *,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write a trained model as transformers, vLLM and lm-eval read it.

    Everything is written beside the output and renamed to it at the end, so a folder of that name
    is a whole and, unless told otherwise, a proven export.

    Args:
        checkpoint: a folder of Megatron checkpoints, or one ``iter_`` folder.
        output: folder that does not exist or is empty.
        iteration: which checkpoint, in optimizer steps; the newest when not given.
        dtype: type of the exported weights; the type they were trained in when not given.
        verify: compare the export with the checkpoint; takes memory for two models in float32.
        on_progress: told each step in a short sentence.

    Raises:
        ValueError: no such checkpoint, no Qwen3-MoE form, or an output that is not empty.
        RuntimeError: the export is not the trained model; nothing is left behind.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not empty. Name another folder, or remove it.")
    # Once: a run that goes on may move its tracker while this reads.
    folder = checkpoints.find_checkpoint(checkpoint, iteration)
    say("reading the saved arguments")
    args = checkpoints.read_args(folder)
    qwen3_moe.check(args)
    dtype = dtype or args.params_dtype
    tokenizer = _tokenizer(args, folder.parent)
    config = _config(args, tokenizer, dtype)
    say("loading the weights")
    loaded = checkpoints.load_model(folder, dtype=torch.float32 if verify else args.params_dtype)
    with _appearing_whole(output) as beside:
        say(f"writing {dtype} weights")
        sizes = _write_weights(beside, dict(loaded.model.named_parameters()), config, dtype)
        _write_json(beside / "config.json", config)
        _write_json(beside / "generation_config.json", _generation_config(config))
        _write_tokenizer(tokenizer, beside)
        say("comparing transformers with Megatron" if verify else "not verified, as asked")
        verification = verify_export(loaded, beside) if verify else None
    say(f"wrote {output}")
    return ExportReport(
        output=output,
        iteration=loaded.iteration,
        dtype=dtype,
        num_parameters=sum(sizes.values()) // dtype.itemsize,
        num_bytes=sum(sizes.values()),
        num_files=len(list(output.glob("*.safetensors"))),
        vocab_size=config["vocab_size"],
        num_padding_rows=args.padded_vocab_size - config["vocab_size"],
        tokenizer=tokenizer.description,
        verification=verification,
        seconds=time.perf_counter() - start,
    )


@contextmanager
def _appearing_whole(output: Path) -> Iterator[Path]:
    """A folder that becomes ``output`` when the block ends, or disappears when it fails."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in beside.iterdir():
            # safetensors gives its files to the owner alone, whatever the umask.
            shutil.copymode(beside / "config.json", path)
            _sync(path)
        _sync(beside)
        beside.replace(output)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(output.parent)


def _config(args: argparse.Namespace, tokenizer: _Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    return qwen3_moe.config_from_args(
        args,
        vocab_size=getattr(args, "vocab_size", None) or tokenizer.vocab_size,
        dtype=dtype,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _write_weights(
    folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, int]:
    """Write every tensor, in files of at most ``SHARD_BYTES``; bytes by tensor name."""
    left_over = weights.keys() - {rule.megatron for rule in qwen3_moe.rules(config)}
    if left_over:
        raise RuntimeError(
            f"Weights without a place in Qwen3-MoE: {', '.join(sorted(left_over))}. "
            "The model has a part that its saved arguments do not tell of."
        )
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in _exported(weights, config)}
    files = _plan_files(sizes)
    tensors = _exported(weights, config)
    for file, names in files.items():
        # Copies: safetensors refuses tensors that share memory, as two parts of one tensor do.
        shard = {
            name: tensor.detach().to(dtype, copy=True).contiguous()
            for name, tensor in islice(tensors, len(names))
        }
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        _write_json(folder / INDEX, index)
    return sizes


def _exported(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    for rule in qwen3_moe.rules(config):
        parts = qwen3_moe.split(rule.form, weights[rule.megatron], config)
        yield from zip(rule.hf, parts, strict=True)


def _plan_files(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Tensor names by file name, in their order."""
    groups: list[list[str]] = []
    filled = SHARD_BYTES
    for name, num_bytes in sizes.items():
        if filled + num_bytes > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += num_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": names
        for number, names in enumerate(groups, start=1)
    }


def _tokenizer(args: argparse.Namespace, checkpoints_folder: Path) -> _Tokenizer:
    """The tokenizer a model was trained with, as far as its files are on this machine."""
    kind, name = args.tokenizer_type, args.tokenizer_model
    # A run keeps its tokenizer with its checkpoints, and both may have moved since.
    beside = checkpoints_folder / "tokenizer.model"
    source = beside if beside.is_file() else Path(name) if name else None
    if kind == "SentencePieceTokenizer" and source and source.is_file():
        from tst_megatron.data.tokenizer import load_sentencepiece

        processor = load_sentencepiece(source)
        return _Tokenizer(
            source=source,
            description=f"SentencePiece, from {source}",
            vocab_size=processor.vocab_size(),
            bos_token_id=_id_or_none(processor.bos_id()),
            eos_token_id=_id_or_none(processor.eos_id()),
        )
    if kind == "HuggingFaceTokenizer" and source and source.is_dir():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        return _Tokenizer(
            source=source,
            description=f"Hugging Face, from {source}",
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    reason = f"{kind} has no files" if source is None else f"{kind} {name} is not on this machine"
    return _Tokenizer(source=None, description=f"none written: {reason}")


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _write_tokenizer(tokenizer: _Tokenizer, folder: Path) -> None:
    if tokenizer.source is None:
        return
    if tokenizer.source.is_file():
        from tst_megatron.hf.tokenizer import export_tokenizer

        export_tokenizer(tokenizer.source, folder)
        return
    for name in _TOKENIZER_FILES:
        if (tokenizer.source / name).is_file():
            shutil.copyfile(tokenizer.source / name, folder / name)


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids only: a base model has no sampling settings of its own."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    return {"_from_model_config": True, **ids}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
