"""Import a model in Hugging Face format into a checkpoint that training starts from.

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

from tst_megatron.checkpoint.folder import RELEASE, TRACKER
from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.checkpoint.reader.weights import TrainedWeights, skeleton
from tst_megatron.checkpoint.whole import record_save
from tst_megatron.data.tokenizer.files import HUGGING_FACE_FOLDER, copy_files, tokenizer_sha256
from tst_megatron.hf.model_folder.import_source import ImportSource, read_source
from tst_megatron.hf.model_folder.soundness import check_numbers
from tst_megatron.hf.model_folder.weight_files import check_is_free
from tst_megatron.hf.model_folder.whole_model import problems_along
from tst_megatron.hf.tokenizer import files as tokenizer_files
from tst_megatron.hf.trained_model import open_gpt
from tst_megatron.hf.verify import VerificationReport, verify
from tst_megatron.hf.weights import merge, rules
from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.recipe import padding
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.machine.disk import check_room

MODEL = "model.yaml"
"""Megatron's keys of the model: a recipe to build on."""

# What Megatron's validation wants of any run; a recipe has its own values.
_ANY_RUN = {"micro-batch-size": 1, "global-batch-size": 1, "train-iters": 1, "lr": 1e-3}
CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """The facts of an import, for its command to print."""

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

    A folder of the output's name is a complete import. One weight is in memory at a time.

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
        ValueError: the folder is incomplete, is of another family, or has a part that Megatron's
            model does not have; or the output is not empty.
        OSError: the disk has no room for it.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    check_is_free(output)
    # 1. What the folder says of itself, all of it before anything slow.
    source = read_source(hf_dir, tensor_parallel)
    check_room(output.absolute(), source.files.num_bytes(source.config), "the checkpoint")
    if problems := problems_along(hf_dir):
        raise ValueError("\n".join(problems))
    # 2. The same model in Megatron: its arguments, and the names and cuts of its weights.
    model = _model(source)
    with folder_appearing_whole(output) as beside:
        # 3. Every number of the weights, before hours of training start from them.
        say(f"looking through {len(source.files.names()):,} weights")
        check_numbers(source.files)
        # 4. The checkpoint, the recipe of its shape and the tokenizer.
        say(f"writing {source.dtype} weights")
        _write_checkpoint(beside, source, model, on_weight)
        (beside / MODEL).write_text(_recipe(source.keys, output))
        copied = _copy_tokenizer(hf_dir, beside)
        # 5. Read it back and prove it.
        proof = _prove(source, beside, compute, say) if verify_weights else None
    say(f"wrote {output}")
    return _report(source, output, copied, proof, time.perf_counter() - start)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """The same model in Megatron."""

    args: argparse.Namespace
    weights: dict[str, Any]
    """Each weight as a checkpoint names and cuts it (``skeleton``)."""
    aliases: dict[str, str]
    """The names under which Transformer Engine's layers look for some of them."""


def _model(source: ImportSource) -> _Model:
    in_one_process()
    with _as_a_form_of(source.folder):
        args = _arguments(source.keys, source.dtype)
        weights, aliases = skeleton(args, CONTENT_METADATA)
    with contextlib.suppress(FileNotFoundError):
        setattr(args, tokenizer_files.IMPORTED, tokenizer_sha256(source.folder))
    return _Model(args=args, weights=weights, aliases=aliases)


def _prove(
    source: ImportSource, folder: Path, compute: bool | None, say: Callable[[str], None]
) -> VerificationReport:
    say("comparing Megatron with transformers")
    proof = verify(TrainedWeights(open_gpt(folder)), source.folder, compute=compute)
    if proof.computed is not None:
        padding.write_facts(
            folder,
            vocab_size=source.config["vocab_size"],
            log_sum_exp=proof.computed.mean_log_sum_exp,
        )
    return proof


def _report(
    source: ImportSource,
    output: Path,
    copied: list[str],
    proof: VerificationReport | None,
    seconds: float,
) -> ImportReport:
    names = [name for rule in rules(source.config) for name in rule.hf]
    return ImportReport(
        output=output,
        num_parameters=sum(math.prod(source.files.shape(name)) for name in names),
        dtype=source.dtype,
        family=source.family.name,
        vocab_size=source.config["vocab_size"],
        tokenizer=", ".join(copied) or "none: the folder has no tokenizer",
        verification=proof,
        seconds=seconds,
    )


@contextlib.contextmanager
def _as_a_form_of(hf_dir: Path) -> Iterator[None]:
    """Turn Megatron's refusal of a model into a sentence, while it checks arguments and builds."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{hf_dir}: this model has no Megatron form: Megatron refuses it: {said}"
        ) from error


def _arguments(keys: Mapping[str, Any], dtype: torch.dtype) -> argparse.Namespace:
    """Return Megatron's arguments of the model, validated, as a checkpoint holds them."""
    # Importing Megatron needs the CPU host, which ``_model`` has installed.
    from tst_megatron.megatron.distributed_checkpoint.model import validate_arguments

    types = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}, torch.float32: {}}
    run = {**_ANY_RUN, "seq-length": keys["max-position-embeddings"], "ckpt-format": "torch_dist"}
    flags, problems = Flags(argument_parser()).convert(
        {**keys, **types[dtype], **run, **ARGUMENTS, "tokenizer-type": "NullTokenizer"}
    )
    assert not problems, problems
    args = validate_arguments(flags, world_size=1)
    args.padded_vocab_size = args.vocab_size
    # Its files are beside the checkpoint, in a form of their own.
    args.tokenizer_type, args.tokenizer_model = "HuggingFaceTokenizer", None
    return args


def _write_checkpoint(
    output: Path,
    source: ImportSource,
    model: _Model,
    on_weight: Callable[[int, int], None] | None,
) -> None:
    """Write the release, its record and the tracker that names it."""
    # Importing Megatron needs the CPU host, which ``_model`` has installed.
    from tst_megatron.megatron.distributed_checkpoint.model import write_checkpoint

    files, folder = source.files, output / RELEASE
    by_name = {rule.megatron: rule for rule in rules(source.config)}

    def read(name: str) -> Tensor:
        rule = by_name[name]
        return merge(rule.form, [files.read(part) for part in rule.hf], source.config)

    folder.mkdir()
    write_checkpoint(
        folder,
        model.weights,
        read,
        dtype=lambda name: files.dtype(by_name[name].hf[0]),
        common=contents(model.args),
        aliases=model.aliases,
        on_weight=on_weight,
    )
    record_save(folder)
    (output / TRACKER).write_text(RELEASE)


def contents(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a release checkpoint holds beside its tensors.

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
