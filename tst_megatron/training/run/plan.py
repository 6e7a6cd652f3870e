"""The plan of a run: the part of a checked recipe that training needs.

A check knows more, such as Megatron's parser and the recipe's warnings (``CheckedRecipe``). What
trains is handed this plan alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.training.run.identity import identity

if TYPE_CHECKING:
    # Import numpy, and `tst-megatron status` is to answer in less time than that takes.
    from tst_megatron.data.manifest import Manifest
    from tst_megatron.data.stream.corpora import Corpus
    from tst_megatron.data.stream.plan import StreamPlan
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.recipe.tst_config import TSTConfig
    from tst_megatron.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """The model that a run trains, its text, and its steps."""

    recipe: Path
    """The recipe's file, of which the run folder keeps a copy."""
    identity: dict[str, Any]
    """What makes the run this run and no other (``run/identity.py``)."""
    tst: TSTConfig
    flags: tuple[str, ...]
    """Megatron's command line."""
    arguments: argparse.Namespace
    """Megatron's arguments, validated for the ranks of this start."""
    schedule: Schedule
    stream: StreamPlan
    """What every sample of the run reads."""
    corpora: tuple[Corpus, ...]
    environment: dict[str, str]
    """Variables that the ranks should have; whoever starts them sets them."""

    @property
    def is_on_cpu(self) -> bool:
        """Tell whether the ranks train on the CPU host."""
        return bool(self.identity["profile"] == "cpu")

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first corpus, which names the tokenizer of all of them."""
        return self.corpora[0].manifest

    @property
    def saves_manifest(self) -> bool:
        """Tell whether checkpoints end with a manifest of hashes, which loading then needs."""
        return "--verify-integrity" in self.flags

    @property
    def last_evaluations(self) -> frozenset[str]:
        """The evaluations that follow the last step: some of ``validation`` and ``test``."""
        keys = self.identity
        if not keys.get("eval-interval") or keys.get("eval-iters") == 0:
            return frozenset()
        return frozenset({"validation", "test"} if self.manifest.test else {"validation"})


def run_plan(checked: CheckedRecipe) -> RunPlan:
    """Return what training needs of a checked recipe."""
    return RunPlan(
        recipe=checked.recipe.path,
        identity=identity(checked),
        tst=checked.recipe.tst,
        flags=checked.flags,
        arguments=checked.arguments,
        schedule=checked.schedule,
        stream=checked.stream,
        corpora=checked.corpora,
        environment=checked.environment,
    )
