"""Give the token stream and the held-out texts to Megatron's loaders, as data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.stream.stream import HeldOutPositions, TokenStream
from tst_megatron.megatron import loop, names, ranks


class TrainingSamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sample i of the run, of whatever phase it belongs to."""

    split = names.Split.train

    def __init__(self, stream: TokenStream) -> None:
        """Read from a stream."""
        self._stream = stream

    def __len__(self) -> int:
        """Samples of the whole run."""
        return self._stream.plan.num_samples

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """``tokens``: [T] int64 raw tokens, look-ahead included."""
        return {"tokens": torch.from_numpy(self._stream.tokens(sample))}


class HeldOutSamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The same positions again for each evaluation, since Megatron's loader only goes forward."""

    def __init__(self, positions: HeldOutPositions, *, split: Any, num_evaluations: int) -> None:
        """Repeat the positions of a split for a number of evaluations."""
        self.split = split
        self._positions = positions
        self._num_evaluations = num_evaluations

    def __len__(self) -> int:
        """Samples of all evaluations together."""
        return self._positions.num_samples * self._num_evaluations

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """``tokens``: [L + 1] int64 raw tokens."""
        place = sample % self._positions.num_samples
        return {"tokens": torch.from_numpy(self._positions.tokens(place))}


def held_out_positions(plan: StreamPlan, corpora: Sequence[Corpus], name: str) -> HeldOutPositions:
    """Open a held-out text as each evaluation of this run reads it.

    Args:
        plan: of the run's stream.
        corpora: those of the plan, in its order.
        name: ``validation`` or ``test``.
    """
    args = names.get_args()
    return HeldOutPositions(
        [corpus.manifest.splits()[name] for corpus in corpora],
        [corpus.weight for corpus in corpora],
        num_samples=args.eval_iters * args.eval_global_batch_size,
        num_latent_positions=plan.schedule.num_latent_positions,
    )


def make_dataset_provider(plan: StreamPlan, corpora: Sequence[Corpus]) -> Callable[..., Any]:
    """Return the function that Megatron calls on every rank for its data sets."""

    def provide(
        num_samples: Sequence[int], vp_stage: int | None = None
    ) -> tuple[TrainingSamples | None, HeldOutSamples | None, HeldOutSamples | None]:
        args = names.get_args()
        loop.count_whole_evaluations(args)
        if ranks.tensor_parallel_rank() != 0 or not ranks.holds_a_batch(vp_stage):
            return None, None, None
        training = TrainingSamples(TokenStream(plan, corpora))
        if not args.eval_interval or not args.eval_iters:
            return training, None, None

        def held_out(split: Any, name: str, num_evaluations: int) -> HeldOutSamples:
            positions = held_out_positions(plan, corpora, name)
            return HeldOutSamples(positions, split=split, num_evaluations=num_evaluations)

        per_evaluation = args.eval_iters * args.eval_global_batch_size
        # One more than Megatron asks for: it evaluates once again after the last step.
        num_evaluations = num_samples[1] // per_evaluation + 1
        validation = held_out(names.Split.valid, "validation", num_evaluations)
        if corpora[0].manifest.test is None:
            return training, validation, None
        return training, validation, held_out(names.Split.test, "test", 1)

    return provide
