"""What makes a run this run and no other: its recipe, phases and text, without what may change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tst_megatron.recipe import TSTConfig
from tst_megatron.training.resharding import LAYOUT_KEYS

if TYPE_CHECKING:
    # Imports torch, which takes longer than `tst-megatron status` may.
    from tst_megatron.check import CheckedRecipe

FREE_KEYS = (
    "rerun-mode",
    "save-interval",
    "save-retain-interval",
    "async-save",
    # In which form the next checkpoint is written, and how this one is read.
    "dist-ckpt-optim-fully-reshardable",
    "distrib-optim-fully-reshardable-mem-efficient",
    "ckpt-fully-parallel-load",
    "no-ckpt-fully-parallel-save",
)
"""Megatron's keys that may change over the life of a run, since they decide no number of it, as
``tst.keep-last-checkpoints`` may. Those of the layout may too, where the checkpoint can be loaded
into the new one (``resharding``)."""


def identity(checked: CheckedRecipe) -> dict[str, Any]:
    """What decides a run; most of it must stay the same over its life."""
    steps = [[phase.bag_size, phase.num_steps] for phase in checked.schedule.phases]
    return {
        **checked.recipe.resolved(),
        "phases": steps,
        "given by the profile": checked.profile_values,
        "training text": [corpus.manifest.train.bin_sha256 for corpus in checked.corpora],
    }


def comparable(run: dict[str, Any]) -> dict[str, Any]:
    """Without what may change over the life of a run."""
    kept = {k: v for k, v in run.items() if k not in (*FREE_KEYS, *LAYOUT_KEYS)}
    # A key that is newer than the run had the value that is its default now.
    tst = TSTConfig().as_keys() | (kept.pop("tst", None) or {})
    # Follows from the profile and the layout, which are compared where they must be.
    kept.pop("given by the profile", None)
    # Each key of the block by itself, for messages.
    return kept | {f"tst.{k}": v for k, v in tst.items() if k != "keep-last-checkpoints"}
