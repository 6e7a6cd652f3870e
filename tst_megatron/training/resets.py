"""Reset embeddings or optimizer before the first recovery step, as ``tst.reset-*`` ask.

The checkpoint of the last superposition step is saved before the reset, so a run that is resumed
there resets too. What is drawn depends on the seed alone, and not on the layout or on what was
drawn before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tst_megatron.megatron import names, ranks
from tst_megatron.megatron import optimizer as megatron_optimizer
from tst_megatron.model.gpt import VocabularyTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Resets:
    """The resets at the switch; called before every optimizer step."""

    step: int
    """Steps completed when superposition ends."""
    embeddings: bool
    optimizer: bool
    seed: int
    say: Callable[[str], None]

    def __call__(self, step: int, model_chunks: Sequence[Any], optimizer: Any) -> None:
        """Reset if the step that follows ``step`` completed ones is the first of recovery.

        Args:
            step: optimizer steps completed.
            model_chunks: this rank's stages of the model, as Megatron wraps them.
            optimizer: Megatron's, chained or not.
        """
        if step != self.step:
            return
        if self.embeddings:
            # A gather that is still under way would bring the old tables back.
            megatron_optimizer.gather_parameters(model_chunks, optimizer)
            for chunk in model_chunks:
                tables = names.get_attr_wrapped_model(chunk, "vocabulary_tables")()
                reset_tables(tables, optimizer, seed=self.seed)
            megatron_optimizer.gather_parameters(model_chunks, optimizer)
            self.say(f"after step {step}: embeddings and output layer drawn anew")
        if self.optimizer:
            megatron_optimizer.start_anew(optimizer)
            self.say(f"after step {step}: optimizer started anew")


def reset_tables(tables: Iterable[VocabularyTable], optimizer: Any, *, seed: int) -> None:
    """Draw new tables, in every copy that the optimizer keeps, with zero moments."""
    rank, size = ranks.tensor_parallel_rank(), ranks.tensor_parallel_size()
    for table in tables:
        num_rows, width = table.weight.shape
        shape = (num_rows * size, width)
        drawn = draw(table.name, shape, table.initialise, seed=seed)
        rows = drawn[rank * num_rows : (rank + 1) * num_rows]
        megatron_optimizer.assign(optimizer, table.weight, rows.to(table.weight.device))


def draw(
    name: str, shape: tuple[int, int], initialise: Callable[[Tensor], Any], *, seed: int
) -> Tensor:
    """Draw new values for a table, the same on every rank; torch's generators stay as they were.

    Args:
        name: of the table; each has draws of its own.
        shape: (V, H), the vocabulary padded.
        initialise: fills a tensor in place.
        seed: of the run.

    Returns:
        [V, H] fp32 on the CPU.
    """
    digest = hashlib.sha256(f"{seed}/reset/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of GPUs too.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
        initialise(drawn)
    return drawn
