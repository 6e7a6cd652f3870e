"""Choose the flags of an asynchronous save, which Megatron takes only together."""

from __future__ import annotations

import argparse

from tst_megatron.recipe.recipe import Recipe
from tst_megatron.system.packages import has_nvidia_resiliency_ext


def async_save(
    recipe: Recipe, values: argparse.Namespace, given: set[str | None]
) -> tuple[list[str], list[str]]:
    """Return the flags that make Megatron save asynchronously when ``async-save`` asks for it.

    Megatron has three flags that only work together. Without a worker it saves synchronously after
    a warning, and its default strategy belongs to a package that may be missing.

    Returns:
        (flags to add, problems).
    """
    if not values.async_save:
        return [], []
    problems = []
    if "use_persistent_ckpt_worker" in given and not values.use_persistent_ckpt_worker:
        problems.append(
            "use-persistent-ckpt-worker: false beside async-save, which needs the worker. Remove "
            "one of the two"
        )
    has_nvrx = recipe.profile != "cpu" and has_nvidia_resiliency_ext()
    if "async_strategy" in given and values.async_strategy == "nvrx" and not has_nvrx:
        problems.append(
            "async-strategy: nvrx needs a GPU and nvidia-resiliency-ext (pip install "
            "nvidia-resiliency-ext). Remove the key, or use mcore"
        )
    flags = [] if values.use_persistent_ckpt_worker else ["--use-persistent-ckpt-worker"]
    if "async_strategy" not in given and not has_nvrx:
        flags += ["--async-strategy", "mcore"]
    return flags, problems
