"""The token stream and the held-out text as the data sets that Megatron's loaders read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tst_megatron import upstream
from tst_megatron.data.indexed import IndexedReader
from tst_megatron.data.manifest import Manifest
from tst_megatron.data.stream import HeldOutPositions, TokenStream
from tst_megatron.schedule import Schedule


class TrainingSamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sample i of the run, of whatever phase it belongs to."""

    split = upstream.Split.train

    def __init__(self, stream: TokenStream) -> None:
        """Read from a stream."""
        self._stream = stream

    def __len__(self) -> int:
        """Samples of the whole run."""
        return self._stream.num_samples

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """``tokens``: [K*L + K] int64 raw tokens."""
        return {"tokens": torch.from_numpy(self._stream.tokens(sample))}


class HeldOutSamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The same positions again for each evaluation, since Megatron's loader only goes forward."""

    split = upstream.Split.valid

    def __init__(self, positions: HeldOutPositions, *, num_evaluations: int) -> None:
        """Repeat the positions for a number of evaluations."""
        self._positions = positions
        self._num_evaluations = num_evaluations

    def __len__(self) -> int:
        """Samples of all evaluations together."""
        return self._positions.num_samples * self._num_evaluations

    def __getitem__(self, sample: int) -> dict[str, Tensor]:
        """``tokens``: [L + 1] int64 raw tokens."""
        place = sample % self._positions.num_samples
        return {"tokens": torch.from_numpy(self._positions.tokens(place))}


def make_dataset_provider(
    manifest: Manifest, schedule: Schedule, *, unit_chunks: int
) -> Callable[..., tuple[TrainingSamples | None, HeldOutSamples | None, None]]:
    """What ``pretrain`` calls on every rank to get its training, validation and test data."""

    def provide(
        num_samples: Sequence[int], vp_stage: int | None = None
    ) -> tuple[TrainingSamples | None, HeldOutSamples | None, None]:
        args = upstream.get_args()
        upstream.count_whole_evaluations(args)
        if upstream.tensor_parallel_rank() != 0 or not upstream.holds_a_batch(vp_stage):
            return None, None, None
        stream = TokenStream(
            IndexedReader(manifest.train.prefix),
            schedule,
            unit_chunks=unit_chunks,
            seed=args.seed,
        )
        if not args.eval_interval or not args.eval_iters:
            return TrainingSamples(stream), None, None
        per_evaluation = args.eval_iters * args.eval_global_batch_size
        held_out = HeldOutPositions(
            IndexedReader(manifest.validation.prefix),
            num_samples=per_evaluation,
            num_latent_positions=schedule.num_latent_positions,
        )
        # One more than Megatron asks for: it evaluates once again after the last step.
        num_evaluations = num_samples[1] // per_evaluation + 1
        return (
            TrainingSamples(stream),
            HeldOutSamples(held_out, num_evaluations=num_evaluations),
            None,
        )

    return provide
