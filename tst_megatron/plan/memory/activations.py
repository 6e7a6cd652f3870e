"""Add up what the layers of a rank keep and work on, from what one of each kind was measured to.

The rules beyond the measurement are here, each with its source: recompute of whole layers, experts
on other ranks, and the passes of a pipeline.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tst_megatron.plan.memory.dry_rank import Chunk
from tst_megatron.plan.memory.layers import Layer
from tst_megatron.plan.memory.layers_alone import recomputed_modules
from tst_megatron.plan.memory.pipeline import in_flight


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Bytes of a rank at the fullest moment of a step, beside what it holds between steps."""

    kept: Mapping[str, int]
    """For backward passes to come, by the kind of layer: embedding, dense, moe, loss."""
    in_work: int
    """What the layer at work needs beside that: gradients, copies, and what it computes anew."""
    bag_size: int
    """Tokens per bag of the phase that needs the most."""
    micro_batches_in_flight: int

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.kept.values()) + self.in_work


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A part of a chunk whose backward pass is one: a layer, or several that are recomputed."""

    kind: str
    kept: float
    work: float
    """At the fullest moment of its own, beside what it keeps."""


def activations_of(
    args: argparse.Namespace,
    chunks: Sequence[Chunk],
    layers: Mapping[str, Layer],
    *,
    stage: int,
    bag_size: int,
    imbalance: float,
) -> Activations:
    """Return what a rank needs at the fullest moment of a step.

    Args:
        args: validated for the job.
        chunks: of the rank.
        layers: as measured, by kind.
        stage: of the pipeline that the rank is on.
        bag_size: tokens per bag.
        imbalance: positions that the fullest rank's experts get, by those of an even share.
    """
    pieces = [
        list(_pieces(args, chunk, layers, bag_size=bag_size, imbalance=imbalance))
        for chunk in chunks
    ]
    moments = (
        moment
        for chunk, flying in in_flight(args, stage)
        for moment in _backward(pieces, chunk, flying)
    )
    kept, work, number = max(moments, key=lambda moment: sum(moment[0].values()) + moment[1])
    return Activations(
        kept={kind: round(size) for kind, size in kept.items() if size},
        in_work=round(work),
        bag_size=bag_size,
        micro_batches_in_flight=number,
    )


def _backward(
    pieces: Sequence[Sequence[_Piece]], chunk: int, flying: Counter[int]
) -> Iterator[tuple[Counter[str], float, int]]:
    """Yield what lives at each piece of a chunk's backward pass: (kept, in work, in flight)."""
    others: Counter[str] = Counter()
    for index, number in flying.items():
        for piece in pieces[index]:
            others[piece.kind] += (number - (index == chunk)) * piece.kept  # type: ignore[assignment]
    before: Counter[str] = Counter()
    for piece in pieces[chunk]:
        before[piece.kind] += piece.kept  # type: ignore[assignment]
        yield others + before, piece.work, flying.total()


def _pieces(
    args: argparse.Namespace,
    chunk: Chunk,
    layers: Mapping[str, Layer],
    *,
    bag_size: int,
    imbalance: float,
) -> Iterator[_Piece]:
    """Yield the parts of a chunk in the order of its forward pass."""
    # Each rank of a context-parallel group has its part of a sequence.
    length, batch = args.seq_length // args.context_parallel_size, args.micro_batch_size
    if chunk.has_embedding:
        yield _measured("embedding", layers[f"embedding, K={bag_size}"], length, batch)
    decoder = [
        _layer(args, kind, layers[kind], length, batch, imbalance=imbalance)
        for kind in chunk.layers
    ]
    yield from _recomputed(decoder, args, length, batch)
    if chunk.has_loss:
        for _ in range(args.mtp_num_layers or 0):
            yield decoder[-1]
            yield _measured("loss", layers["loss, K=1"], length, batch)
        yield _measured("loss", layers[f"loss, K={bag_size}"], length, batch)


def _measured(kind: str, layer: Layer, length: int, batch: int) -> _Piece:
    kept = layer.kept.at(length, batch)
    return _Piece(kind=kind, kept=kept, work=max(0.0, layer.peak(length, batch) - kept))


def _layer(
    args: argparse.Namespace,
    kind: str,
    layer: Layer,
    length: int,
    batch: int,
    *,
    imbalance: float,
) -> _Piece:
    """Return a layer of the decoder, whose experts may lie on other ranks.

    Measured were all experts on one rank. With expert parallelism a rank gets the positions of its
    own experts from all ranks: as many on average, and more on the fullest rank.
    """
    plain, peak = layer.kept.at(length, batch), layer.peak(length, batch)
    activations = layer.kept_activations_of_experts.at(length, batch)
    routed = layer.kept_by_experts.at(length, batch) + activations
    work = max(0.0, peak - plain - routed)
    if "moe_act" in recomputed_modules(args):
        # Megatron's experts.py discards the input of the second product, and recomputes it.
        routed, work = routed - activations, work + activations
    if kind == "moe" and args.expert_model_parallel_size > 1:
        work = work * imbalance + _sent(args, length, batch) * imbalance
        routed *= imbalance
    # Experts that are split over tensor-parallel ranks get the positions of all of those.
    spread = (args.expert_tensor_parallel_size or 1) if kind == "moe" else 1
    return _Piece(kind=kind, kept=plain + routed * spread, work=work * spread)


def _sent(args: argparse.Namespace, length: int, batch: int) -> float:
    """Return the bytes of the positions on their way to experts on other ranks.

    While they are exchanged, a copy in the order of the sender is there beside the one that was
    measured (megatron/core/transformer/moe/token_dispatcher.py, all-to-all).
    """
    return float(_input(args, length, batch) * args.moe_router_topk)


def _input(args: argparse.Namespace, length: int, batch: int) -> float:
    """Return the bytes of a layer's input."""
    ranks = args.tensor_model_parallel_size if args.sequence_parallel else 1
    size = 4 if args.fp32_residual_connection else args.params_dtype.itemsize
    return float(length * batch * args.hidden_size * size / ranks)


def _recomputed(
    decoder: Sequence[_Piece], args: argparse.Namespace, length: int, batch: int
) -> Iterator[_Piece]:
    """Yield layers, joined where only the input of some is kept and all are computed again.

    Source: megatron/core/transformer/transformer_block.py, ``_checkpointed_forward``: ``uniform``
    keeps the input of each group of layers, ``block`` that of each of the first layers.
    """
    if args.recompute_granularity != "full":
        yield from decoder
        return
    size = args.recompute_num_layers or 1
    kept = _input(args, length, batch)
    if args.distribute_saved_activations:
        kept /= args.tensor_model_parallel_size
    if args.recompute_method == "block":
        for layer in decoder[:size]:
            yield _Piece(kind=layer.kind, kept=kept, work=layer.kept + layer.work)
        yield from decoder[size:]
        return
    for group in itertools.batched(decoder, size):
        # The backward pass of its last layer comes when all of the group are computed again.
        work = sum(layer.kept for layer in group) + group[-1].work
        yield _Piece(kind=group[-1].kind, kept=kept, work=work)
