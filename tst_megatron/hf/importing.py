"""Import a model in Hugging Face format into a checkpoint that training goes on from.

The checkpoint is what Megatron calls a release: weights alone, of no step, read by a run's first
start (``pretrained-checkpoint``) in any parallel layout.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tst_megatron.checkpoint.open import RELEASE, TrainedWeights, open_checkpoint, skeleton
from tst_megatron.checkpoint.seam import seam
from tst_megatron.checkpoint.whole import TRACKER, record_save
from tst_megatron.data.tokenizer.files import HUGGING_FACE_FOLDER, copy_files, tokenizer_sha256
from tst_megatron.hf.families.family import Family, parts_without_form
from tst_megatron.hf.model_folder.config_problems import config_problems
from tst_megatron.hf.model_folder.configuration import (
    complete,
    known_family,
    refuse,
    written_config,
)
from tst_megatron.hf.model_folder.soundness import check_numbers
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights, check_is_free
from tst_megatron.hf.model_folder.whole_model import problems_along
from tst_megatron.hf.tokenizer import files as tokenizer_files
from tst_megatron.hf.verify import VerificationReport, verify
from tst_megatron.hf.weights import Rule, merge, rules
from tst_megatron.recipe import padding
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.machine.disk import check_room

MODEL = "model.yaml"
"""Megatron's keys of the model: a recipe to build on."""

# What validation wants of any run; a recipe says its own.
_ANY_RUN = {"micro-batch-size": 1, "global-batch-size": 1, "train-iters": 1, "lr": 1e-3}
CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import wrote."""

    output: Path
    num_parameters: int
    dtype: torch.dtype
    family: str
    vocab_size: int
    """Rows of the tables, none of which is padding."""
    tokenizer: str
    """The tokenizer's files that were copied, or that there are none."""
    verification: VerificationReport | None
    seconds: float


def import_model(
    hf_dir: Path,
    output: Path,
    *,
    tensor_parallel: int | None = None,
    verify_weights: bool = True,
    compute: bool | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_weight: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Write a model's weights as a Megatron checkpoint, and a recipe of its shape beside them.

    Written beside and renamed at the end; one weight is in memory at a time.

    Args:
        hf_dir: Qwen3-MoE, Qwen3 or Llama in Hugging Face format, of any shape.
        output: folder that does not exist or is empty. It gets the checkpoint, ``model.yaml`` and
            the tokenizer's files.
        tensor_parallel: the tensor-parallel size of the layout that the model is to be trained in;
            all up to 8 that can cut the vocabulary into equal parts when not given.
        verify_weights: read the checkpoint back and compare it with the folder.
        compute: as for ``verify.verify``.
        on_progress: told each step in a short sentence.
        on_weight: told the weights written so far and the weights to write.

    Raises:
        ValueError: the folder is not whole, is of another family, or has a part that Megatron's
            model does not have; or the output is not empty.
        OSError: the disk has no room for it.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    check_is_free(output)
    family, config, keys = _configuration(hf_dir)
    files = HuggingFaceWeights(hf_dir)
    files.check(config)
    keys["make-vocab-size-divisible-by"] = _divisor(config["vocab_size"], tensor_parallel)
    dtype = files.dtype(next(rules(config)).hf[0])
    check_room(output.absolute(), files.num_bytes(config), "the checkpoint")
    if problems := problems_along(hf_dir):
        raise ValueError("\n".join(problems))
    megatron = seam()
    with _as_a_form_of(hf_dir):
        args = _arguments(megatron, keys, dtype)
        cut = skeleton(args, CONTENT_METADATA)
    with contextlib.suppress(FileNotFoundError):
        setattr(args, tokenizer_files.IMPORTED, tokenizer_sha256(hf_dir))
    with folder_appearing_whole(output) as beside:
        say(f"looking through {len(files.names()):,} weights")
        check_numbers(files)
        say(f"writing {dtype} weights")
        (beside / RELEASE).mkdir()
        _write(beside / RELEASE, files, config, args, cut, on_weight)
        record_save(beside / RELEASE)
        (beside / TRACKER).write_text(RELEASE)
        (beside / MODEL).write_text(_recipe(keys, output))
        copied = _copy_tokenizer(hf_dir, beside)
        proof = None
        if verify_weights:
            say("comparing Megatron with transformers")
            proof = verify(TrainedWeights(open_checkpoint(beside)), hf_dir, compute=compute)
            if proof.computed is not None:
                padding.write_facts(
                    beside,
                    vocab_size=config["vocab_size"],
                    log_sum_exp=proof.computed.mean_log_sum_exp,
                )
    say(f"wrote {output}")
    return ImportReport(
        output=output,
        num_parameters=sum(
            math.prod(files.shape(name)) for rule in rules(config) for name in rule.hf
        ),
        dtype=dtype,
        family=family.name,
        vocab_size=config["vocab_size"],
        tokenizer=", ".join(copied) or "none: the folder has no tokenizer",
        verification=proof,
        seconds=time.perf_counter() - start,
    )


def _configuration(hf_dir: Path) -> tuple[Family, dict[str, Any], dict[str, Any]]:
    """A model's family, its whole configuration, and Megatron's keys for it.

    Nothing is asked of the weights: what the configuration says comes first, all of it at once.

    Raises:
        ValueError: it is the configuration of no model, or of one that Megatron does not have.
    """
    written = written_config(hf_dir)
    family = known_family(hf_dir, written)
    if problems := config_problems(written, family):
        parts = parts_without_form(written)
        refuse(hf_dir, problems + [f"has no Megatron form: {part}" for part in parts])
    config = complete(hf_dir, family)
    try:
        return family, config, family.flags_from_config(config)
    except ValueError as error:
        raise ValueError(f"{hf_dir}: {error}") from error


@contextlib.contextmanager
def _as_a_form_of(hf_dir: Path) -> Iterator[None]:
    """Megatron's refusal of a model, in words: it checks the arguments, then builds from them."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{hf_dir}: this model has no Megatron form: Megatron refuses it: {said}"
        ) from error


def _divisor(vocab_size: int, tensor_parallel: int | None) -> int:
    """The ``make-vocab-size-divisible-by`` of a model whose tables have no padding.

    Padding takes probability, so in a layout that needs it the model would not start at its own
    loss.
    """
    if tensor_parallel is not None and (tensor_parallel < 1 or vocab_size % tensor_parallel):
        sizes = ", ".join(map(str, padding.sizes_without_padding(vocab_size)))
        raise ValueError(
            f"--tensor-parallel {tensor_parallel}: the model's {vocab_size:,} tokens do not divide "
            "into as many equal parts, and columns of padding would take probability from them: it "
            f"would not start at its own loss. Use one of {sizes}, or leave it out: `check` says "
            "what padding costs in the layout of a recipe"
        )
    return padding.divisor_without_padding(vocab_size, tensor_parallel or 1)


def _arguments(megatron: Any, keys: Mapping[str, Any], dtype: torch.dtype) -> argparse.Namespace:
    """Megatron's arguments of the model, validated, as a checkpoint holds them."""
    from tst_megatron.megatron.cpu import host

    types = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}, torch.float32: {}}
    run = {**_ANY_RUN, "seq-length": keys["max-position-embeddings"], "ckpt-format": "torch_dist"}
    flags, problems = Flags(argument_parser()).convert(
        {**keys, **types[dtype], **run, **host.ARGUMENTS, "tokenizer-type": "NullTokenizer"}
    )
    assert not problems, problems
    args: argparse.Namespace = megatron.validate_arguments(flags, world_size=1)
    args.padded_vocab_size = args.vocab_size
    # Its files are beside the checkpoint, in a form of their own.
    args.tokenizer_type, args.tokenizer_model = "HuggingFaceTokenizer", None
    return args


def _write(
    folder: Path,
    files: HuggingFaceWeights,
    config: Mapping[str, Any],
    args: argparse.Namespace,
    cut: tuple[dict[str, Any], dict[str, str]],
    on_weight: Callable[[int, int], None] | None,
) -> None:
    by_name: dict[str, Rule] = {rule.megatron: rule for rule in rules(config)}

    def read(name: str) -> Tensor:
        rule = by_name[name]
        return merge(rule.form, [files.read(part) for part in rule.hf], config)

    weights, aliases = cut
    seam().write_checkpoint(
        folder,
        weights,
        read,
        dtype=lambda name: files.dtype(by_name[name].hf[0]),
        common=contents(args),
        aliases=aliases,
        on_weight=on_weight,
    )


def contents(args: argparse.Namespace) -> dict[str, Any]:
    """What a release checkpoint holds beside its tensors.

    Args:
        args: Megatron's arguments of the model.
    """
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": CONTENT_METADATA,
    }


def _recipe(keys: Mapping[str, Any], output: Path) -> str:
    header = (
        "# The shape of an imported model, in Megatron's keys, and where its weights are. Name it\n"
        "# as `base:` of a recipe that says how to train. After a move, say where it is now.\n"
    )
    where = {"pretrained-checkpoint": str(output.absolute())}
    return header + yaml.safe_dump({**keys, **where}, sort_keys=False)


def _copy_tokenizer(hf_dir: Path, beside: Path) -> list[str]:
    folder = beside / HUGGING_FACE_FOLDER
    folder.mkdir()
    copied = copy_files(hf_dir, folder)
    if copied and (hf_dir / tokenizer_files.GENERATION).is_file():
        shutil.copyfile(hf_dir / tokenizer_files.GENERATION, folder / tokenizer_files.GENERATION)
    if not copied:
        folder.rmdir()
    return copied
