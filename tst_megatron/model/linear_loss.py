"""Compute multi-hot cross-entropy from the output layer's input, without holding all logits.

The logits of 16,384 positions and 151,936 tokens take 5 GB. Where that is too much, this module
computes them in chunks of the vocabulary, in one workspace that is used for one chunk after the
other. It does so once in the forward pass and once more in the backward pass. The chunks have the
same shapes both times and therefore the same bits.

The chunks are of the vocabulary and not of positions. So each row of the weight's gradient is
written once, and only the smaller gradient, that of the hidden states, is summed over chunks.

Shapes: L latent positions, B micro-batch, N = L * B, H hidden, K slots per bag, P vocabulary
columns on this rank (V / tp).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from tst_megatron.model.kernels.choose import Implementation, uses_triton
from tst_megatron.model.loss import bags_of, check_shapes, gather_statistics, slot_weights
from tst_megatron.model.loss_steps import Bags, loss_of, statistics, write_gradient
from tst_megatron.model.main_grad import add_matmul, main_grad_of, note_added
from tst_megatron.schedule import SlotWeights

Mode = Literal["auto", "save", "recompute"]

WORKSPACE_BYTES = 512 * 2**20
"""Bytes of logits that exist at a time: 16,384 columns of 16,384 bf16 positions."""

CHUNK_MULTIPLE = 256
"""Columns of a chunk are a multiple of this, which matrix units want."""


class _Head(NamedTuple):
    """Settings of one call that the forward and the backward pass share."""

    first_column: int
    """Token id of this rank's first column."""
    chunk: int
    """Columns that are computed at a time."""
    tp_group: ProcessGroup | None
    sequence_parallel: bool
    into_main_grad: bool
    triton: bool

    @property
    def is_parallel(self) -> bool:
        """Tell whether other ranks hold other columns."""
        return self.tp_group is not None and self.tp_group.size() > 1


def linear_multi_hot_cross_entropy(
    hidden: Tensor,
    weight_PH: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = None,
    sequence_parallel: bool = False,
    slot_weights: Tensor | None = None,
    mode: Mode = "auto",
    workspace_bytes: int | None = None,
    accumulate_into_main_grad: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return ``vocab_parallel_multi_hot_cross_entropy`` of ``hidden @ weight.T``.

    Args:
        hidden: [..., H] hidden states; with ``sequence_parallel`` this rank's share of the first
            dimension, which is gathered here.
        weight_PH: [P, H] rows [rank*P, (rank+1)*P) of the output layer, in the type of ``hidden``.
        targets: [..., K] token ids of the complete vocabulary, of all positions.
        tp_group: the group that the rows are split over; None for an unsplit weight.
        sequence_parallel: ``hidden`` is split over ``tp_group`` as well.
        slot_weights: as in ``multi_hot_cross_entropy``.
        mode: ``save`` computes all logits of this rank and keeps them; ``recompute`` computes them
            chunk by chunk, twice; ``auto`` saves what fits into ``workspace_bytes``.
        workspace_bytes: the most that a chunk of logits takes in ``recompute``, at least 256
            columns; by default 512 MiB.
        accumulate_into_main_grad: add the weight's gradient to Megatron's fp32 buffer, where the
            weight has one, as ``gradient-accumulation-fusion`` does.
        implementation: as in ``vocab_parallel_multi_hot_cross_entropy``.

    Returns:
        [...] loss per latent position in nats, fp32, the same on every rank.

    Raises:
        ValueError: shapes, types or the mode do not fit.
    """
    _check_inputs(hidden, weight_PH, mode)
    num_ranks = tp_group.size() if tp_group is not None else 1
    first, *others = hidden.shape[:-1]
    positions = (first * num_ranks if sequence_parallel else first, *others)
    check_shapes((*positions, hidden.shape[-1]), targets, slot_weights)
    num_columns = weight_PH.shape[0]
    bytes_of_column = targets.shape[:-1].numel() * weight_PH.element_size()
    chunk, saves = _plan(mode, num_columns, bytes_of_column, workspace_bytes or WORKSPACE_BYTES)
    rank = 0 if tp_group is None else tp_group.rank()
    head = _Head(
        first_column=rank * num_columns,
        chunk=chunk,
        tp_group=tp_group,
        sequence_parallel=sequence_parallel and num_ranks > 1,
        into_main_grad=accumulate_into_main_grad,
        triton=uses_triton(hidden, implementation),
    )
    loss_N: Tensor = _LinearMultiHotCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight_PH, *bags_of(targets, slot_weights), head, saves
    )
    return loss_N.view(targets.shape[:-1])


def linear_loss(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    labels: Tensor,
    config: Any,
    kind: SlotWeights = "uniform",
    **_: Any,
) -> Tensor:
    """Return the loss of a batch, for ``GPTModel`` to call instead of its output layer and loss.

    ``GPTModel.forward`` takes it as ``output_processor`` and passes these arguments by name.

    Args:
        hidden_states: [L, B, H], or this rank's [L / tp, B, H] under sequence parallelism.
        output_layer: Megatron's output layer, of which only the weight is used.
        output_weight: the embedding table where the two are tied, else None.
        labels: [B, L, K] next bags.
        config: of the model.
        kind: the weighting of slots (``tst.slot-weights``).

    Returns:
        [B, L] loss in nats.
    """
    loss_LB = linear_multi_hot_cross_entropy(
        hidden_states,
        output_layer.weight if output_weight is None else output_weight,
        labels.transpose(0, 1),
        tp_group=output_layer.tp_group,
        sequence_parallel=output_layer.sequence_parallel,
        slot_weights=slot_weights(kind, labels.shape[-1], device=labels.device),
        accumulate_into_main_grad=config.gradient_accumulation_fusion,
    )
    return loss_LB.transpose(0, 1).contiguous()


class _LinearMultiHotCrossEntropy(torch.autograd.Function):
    """Output layer and loss as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight_PH: Tensor,
        targets_NK: Tensor,
        slot_weights_K: Tensor | None,
        head: _Head,
        saves: bool,
    ) -> Tensor:
        bags = Bags(targets_NK, slot_weights_K)
        parts = []
        logits = None
        for logits, rows in _chunks_of_logits(_gathered(hidden, head), weight_PH, head):
            parts.append(
                statistics(logits, bags, head.first_column + rows.start, triton=head.triton)
            )
        of_all_ranks = gather_statistics(torch.cat(parts), head.tp_group)
        loss_N, log_sum_exp_N = loss_of(of_all_ranks, bags, triton=head.triton)
        # The gathered hidden states are not saved: the backward pass gathers them again.
        saved = logits if saves else None
        ctx.save_for_backward(hidden, weight_PH, targets_NK, slot_weights_K, log_sum_exp_N, saved)
        ctx.head = head
        # Saved tensors may come back as other objects, but the buffer is an attribute of this one.
        ctx.main_grad = main_grad_of(weight_PH) if head.into_main_grad else None
        ctx.weight = weight_PH if ctx.main_grad is not None else None
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight_PH, targets_NK, slot_weights_K, log_sum_exp_N, saved = ctx.saved_tensors
        head: _Head = ctx.head
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        bags = Bags(targets_NK, slot_weights_K)
        upstream_N = grad_loss_N.to(log_sum_exp_N.dtype).contiguous()
        hidden_NH = _gathered(hidden, head)
        # Chunks are summed in fp32; a single chunk needs no sum and keeps its type.
        is_one_chunk = head.chunk == weight_PH.shape[0]
        total_type = hidden.dtype if is_one_chunk else log_sum_exp_N.dtype
        grad_hidden_NH = torch.zeros_like(hidden_NH, dtype=total_type)
        grad_weight_PH = None
        if needs_weight and ctx.main_grad is None:
            grad_weight_PH = torch.empty_like(weight_PH)
        chunks = (
            _chunks_of_logits(hidden_NH, weight_PH, head)
            if saved is None
            else [(saved, slice(0, weight_PH.shape[0]))]
        )
        for logits, rows in chunks:
            # The gradient of the logits goes over the logits.
            write_gradient(
                logits, logits, log_sum_exp_N, bags, head.first_column + rows.start, upstream_N,
                triton=head.triton,
            )  # fmt: skip
            if grad_weight_PH is not None:
                torch.mm(logits.t(), hidden_NH, out=grad_weight_PH[rows])
            elif needs_weight:
                add_matmul(ctx.main_grad[rows], logits.t(), hidden_NH)
            if needs_hidden:
                add_matmul(grad_hidden_NH, logits, weight_PH[rows])
        if needs_weight and ctx.main_grad is not None:
            grad_weight_PH = note_added(ctx.weight)
        grad_hidden = _reduced(grad_hidden_NH, hidden, head) if needs_hidden else None
        return grad_hidden, grad_weight_PH, None, None, None, None


def _check_inputs(hidden: Tensor, weight_PH: Tensor, mode: str) -> None:
    """Refuse an unknown mode, and hidden states that do not fit the weight."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode: {mode} is none of auto, save, recompute")
    if hidden.dtype != weight_PH.dtype or hidden.shape[-1] != weight_PH.shape[-1]:
        raise ValueError(
            f"hidden states {list(hidden.shape)} of {hidden.dtype} do not fit the weight "
            f"{list(weight_PH.shape)} of {weight_PH.dtype}"
        )


def _plan(
    mode: str, num_columns: int, bytes_of_column: int, workspace_bytes: int
) -> tuple[int, bool]:
    """Return how many columns are computed at a time, and whether their logits are kept."""
    fits = num_columns * bytes_of_column <= workspace_bytes
    if mode == "save" or (mode == "auto" and fits):
        return num_columns, True
    columns = workspace_bytes // max(1, bytes_of_column)
    chunk = max(columns // CHUNK_MULTIPLE * CHUNK_MULTIPLE, CHUNK_MULTIPLE)
    return min(chunk, num_columns), False


def _chunks_of_logits(
    hidden_NH: Tensor, weight_PH: Tensor, head: _Head
) -> Iterator[tuple[Tensor, slice]]:
    """Compute the logits [N, C] of one chunk of C columns after the other.

    Yields each with the rows of the weight that it was computed from. Each overwrites the one
    before. Their number follows from shapes alone, so that a CUDA graph can hold them.
    """
    num_columns = weight_PH.shape[0]
    workspace = hidden_NH.new_empty(hidden_NH.shape[0] * head.chunk)
    for start in range(0, num_columns, head.chunk):
        rows = slice(start, min(start + head.chunk, num_columns))
        width = rows.stop - start
        logits = workspace[: hidden_NH.shape[0] * width].view(-1, width)
        torch.mm(hidden_NH, weight_PH[rows].t(), out=logits)
        yield logits, rows


def _gathered(hidden: Tensor, head: _Head) -> Tensor:
    """Return the hidden states of all positions, [N, H]; gathered under sequence parallelism."""
    if head.sequence_parallel:
        assert head.tp_group is not None
        every = hidden.new_empty((hidden.shape[0] * head.tp_group.size(), *hidden.shape[1:]))
        torch.distributed.all_gather_into_tensor(every, hidden.contiguous(), group=head.tp_group)
        hidden = every
    return hidden.reshape(-1, hidden.shape[-1])


def _reduced(grad_NH: Tensor, hidden: Tensor, head: _Head) -> Tensor:
    """Sum the gradient of ``hidden`` over the ranks that hold other columns.

    It is sent in the type of the hidden states, as Megatron's own output layer does.
    """
    grad = grad_NH.to(hidden.dtype)
    if head.sequence_parallel:
        own = torch.empty_like(hidden)
        grad = grad.view(-1, *hidden.shape[1:])
        torch.distributed.reduce_scatter_tensor(own, grad, group=head.tp_group)
        return own
    if head.is_parallel:
        torch.distributed.all_reduce(grad, group=head.tp_group)
    return grad.view(hidden.shape)
