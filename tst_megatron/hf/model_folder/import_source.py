"""Read what a model folder says of itself before it is imported, and refuse it in words.

Nothing here reads a weight: the configuration and the headers of the weight files are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tst_megatron.hf.families.family import Family, parts_without_form
from tst_megatron.hf.model_folder.config_problems import config_problems
from tst_megatron.hf.model_folder.configuration import (
    complete,
    known_family,
    refuse,
    written_config,
)
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights
from tst_megatron.hf.weights import rules
from tst_megatron.recipe import padding


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSource:
    """The model to import, as far as its configuration and the headers of its files go."""

    folder: Path
    family: Family
    config: dict[str, Any]
    """Complete, as transformers' configuration class fills it."""
    keys: dict[str, Any]
    """Megatron's keys of the model."""
    files: HuggingFaceWeights
    dtype: torch.dtype


def read_source(hf_dir: Path, tensor_parallel: int | None) -> ImportSource:
    """Read and check a model folder that is to be imported, cheapest reason to refuse it first.

    Args:
        hf_dir: in Hugging Face format.
        tensor_parallel: the tensor-parallel size that the model is to be trained in, if known.

    Raises:
        ValueError: the configuration is of no model that Megatron has, or not that of the weights;
            or the vocabulary cannot be cut so.
    """
    family, config, keys = _configuration(hf_dir)
    files = HuggingFaceWeights(hf_dir)
    files.check(config)
    keys["make-vocab-size-divisible-by"] = _divisor(config["vocab_size"], tensor_parallel)
    dtype = files.dtype(next(rules(config)).hf[0])
    return ImportSource(
        folder=hf_dir, family=family, config=config, keys=keys, files=files, dtype=dtype
    )


def _configuration(hf_dir: Path) -> tuple[Family, dict[str, Any], dict[str, Any]]:
    """Return a model's family, its complete configuration, and Megatron's keys for it.

    No weight is looked at: what the configuration says comes first, all of it at once.

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


def _divisor(vocab_size: int, tensor_parallel: int | None) -> int:
    """Return the ``make-vocab-size-divisible-by`` of a model whose tables have no padding.

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
