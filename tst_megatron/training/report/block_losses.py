"""Collect the loss of every held-out sequence while Megatron evaluates, whatever the layout.

The ranks of the last pipeline stage keep a few sums of each sequence that they evaluate. When the
evaluation is complete, they put them into the order of the held-out text and add them up: under
data parallelism each has other sequences, and under context parallelism other positions.

Shapes: B micro-batch, L latent positions, V vocabulary, C sums of a sequence, which are its whole
loss, those of P parts by position, and those of F parts by the frequency of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tst_megatron.data.stream.stream import HeldOutPositions
from tst_megatron.megatron import names, ranks
from tst_megatron.training.report.evaluations import (
    BlockLosses,
    Floats,
    Ints,
    Parts,
    frequency_parts,
    places_of_rank,
    position_edges,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Text:
    """A held-out text as this rank evaluates it."""

    num_sequences: int
    places: Ints
    """Which sequences this rank evaluates, in its order."""
    position_edges: Ints
    frequency_edges: Ints
    frequency_part_V: Tensor
    """[V] the part of each token id by its frequency, on the device."""


class HeldOutLosses:
    """The losses of the evaluation in progress; each rank has one of these."""

    def __init__(
        self, positions: Callable[[str], HeldOutPositions], *, num_latent_positions: int
    ) -> None:
        """Collect nothing yet.

        Args:
            positions: opens a held-out text, ``validation`` or ``test``.
            num_latent_positions: L.
        """
        self._positions = positions
        self._num_latent_positions = num_latent_positions
        self._texts: dict[str, _Text] = {}
        self._text: _Text | None = None
        self._sums: list[Tensor] = []
        self._whole: Tensor | None = None

    def begin(self, event: str) -> None:
        """Prepare for an evaluation; all ranks call this together.

        Args:
            event: ``validation`` or ``test``.
        """
        self._sums.clear()
        self._whole = self._text = None
        if ranks.is_last_pipeline_stage():
            if event not in self._texts:
                self._texts[event] = self._open(event)
            self._text = self._texts[event]

    def add(
        self, position_ids_BL: Tensor, targets_BL: Tensor, loss_mask_BL: Tensor, losses_BL: Tensor
    ) -> None:
        """Take in a micro-batch, without waiting for the device.

        Args:
            position_ids_BL: [B, L] positions in the whole sequence; under context parallelism those
                of this rank, as everything here.
            targets_BL: [B, L] next tokens.
            loss_mask_BL: [B, L] 1 where a position counts.
            losses_BL: [B, L] the model's loss of each position.
        """
        text = self._text
        assert text is not None, "an evaluation has not begun"
        num_parts = len(text.position_edges) - 1
        of_position = position_ids_BL * num_parts // self._num_latent_positions
        of_frequency = text.frequency_part_V[targets_BL]
        columns_BLC = torch.cat(
            [
                torch.ones_like(of_position).unsqueeze(-1),
                one_hot(of_position, num_parts),
                one_hot(of_frequency, len(text.frequency_edges) - 1),
            ],
            dim=-1,
        ).double()
        mask_BL = loss_mask_BL.float()
        # As a product of matrices: adding up by index has no fixed order on a GPU.
        pairs_B2L = torch.stack([losses_BL.detach().float() * mask_BL, mask_BL], dim=1).double()
        self._sums.append(pairs_B2L @ columns_BLC)

    def end(self) -> None:
        """Put together what the ranks have collected, unless the evaluation was cut off.

        All ranks call this together. A stop cuts an evaluation off on all of them alike.
        """
        text, self._text = self._text, None
        if text is None or sum(map(len, self._sums)) != len(text.places):
            return
        sums = torch.cat(self._sums)
        whole_N2C = sums.new_zeros(text.num_sequences, *sums.shape[1:])
        whole_N2C[torch.from_numpy(text.places).to(sums.device)] = sums
        self._whole = ranks.sum_over_data_parallel_ranks(whole_N2C, with_context_parallel=True)
        self._sums.clear()
        self._edges = text.position_edges, text.frequency_edges

    def result(self) -> BlockLosses | None:
        """Return the losses of the last evaluation; None if it was cut off.

        Only ranks of the last pipeline stage have them.
        """
        if self._whole is None:
            return None
        whole_N2C = self._whole.cpu().numpy()
        loss_sum: Floats = whole_N2C[:, 0]
        num_positions: Ints = whole_N2C[:, 1].round().astype(np.int64)
        of_position, of_frequency = self._edges
        last = len(of_position)

        def parts(edges: Ints, columns: slice) -> Parts:
            return Parts(
                edges=edges,
                loss_sum=loss_sum[:, columns],
                num_positions=num_positions[:, columns],
            )

        return BlockLosses(
            loss_sum=loss_sum[:, 0],
            num_positions=num_positions[:, 0],
            by_position=parts(of_position, slice(1, last)),
            by_frequency=parts(of_frequency, slice(last, None)),
        )

    def _open(self, event: str) -> _Text:
        """Find out which sequences this rank evaluates, and how often each token occurs."""
        args, positions = names.get_args(), self._positions(event)
        rank, num_ranks = ranks.data_parallel_place()
        places = places_of_rank(
            positions.num_samples // (args.eval_micro_batch_size * num_ranks),
            micro_batch_size=args.eval_micro_batch_size,
            rank=rank,
            num_ranks=num_ranks,
        )
        counts_V = np.zeros(args.padded_vocab_size, dtype=np.int64)
        for place in places:
            counts_V += np.bincount(positions.tokens(place)[1:], minlength=len(counts_V))
        counts = torch.from_numpy(counts_V).to(ranks.current_device())
        # Each rank has read its own sequences alone.
        ranks.sum_over_data_parallel_ranks(counts, with_context_parallel=False)
        edges, parts_V = frequency_parts(counts.cpu().numpy())
        return _Text(
            num_sequences=positions.num_samples,
            places=places,
            position_edges=position_edges(self._num_latent_positions),
            frequency_edges=edges,
            frequency_part_V=torch.from_numpy(parts_V).to(ranks.current_device()),
        )
