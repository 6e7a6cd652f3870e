"""Refuse keys of Megatron's that a recipe cannot have, because something else decides them.

Keys that are refused with some values, or in some runs, are in ``refusals.py``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tst_megatron.recipe.recipe import RUN_FOLDER_KEYS, Recipe

_TEXT = "the text of a run is named by `data:`. Remove the key"
_TOKENIZER = "the tokenizer comes with the prepared data. Remove the key"
_RECIPE = "the recipe itself says what a run is. Remove the key"
_LAUNCHER = "whoever starts the ranks tells them. Remove the key"

DECIDED_ELSEWHERE = {
    **dict.fromkeys(
        RUN_FOLDER_KEYS,
        "the run folder decides where a run is kept. Remove the key and use --run-folder",
    ),
    **dict.fromkeys(
        (
            *("data-path", "train-data-path", "valid-data-path", "test-data-path"),
            *("data-args-path", "per-split-data-args-path", "per-dataset-sequences-path"),
            *("mock-data", "split"),
        ),
        _TEXT,
    ),
    **dict.fromkeys(
        (
            *("tokenizer-type", "tokenizer-model", "tokenizer-metadata", "vocab-file"),
            *("merge-file", "vocab-extra-ids", "tiktoken-pattern", "null-tokenizer-eod-id"),
            *("null-tokenizer-pad-id", "chat-template"),
        ),
        _TOKENIZER,
    ),
    **dict.fromkeys(("yaml-cfg", "spec", "config-logger-dir"), _RECIPE),
    **dict.fromkeys(("local-rank", "lazy-mpu-init", "fake-process-group", "test-mode"), _LAUNCHER),
    "tensorboard-log-interval": "each step is recorded. Remove the key",
    **{
        removed: f"Megatron takes it no longer. Use {key}"
        for removed, key in {
            "batch-size": "micro-batch-size",
            "warmup": "lr-warmup-fraction",
            "model-parallel-size": "tensor-model-parallel-size",
            "checkpoint-activations": "recompute-activations",
        }.items()
    },
}
"""Key -> the reason, and what to do instead."""


def key_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """List keys that something else decides, and a folder of indexes that cannot be one."""
    problems = [
        f"{key}: {reason}" for key, reason in DECIDED_ELSEWHERE.items() if key in recipe.megatron
    ]
    cache = values.data_cache_path
    if cache and os.path.lexists(cache) and not Path(cache).is_dir():
        problems.append(
            f"data-cache-path: {cache} is no folder. Name one, or a place for a new one"
        )
    return problems
