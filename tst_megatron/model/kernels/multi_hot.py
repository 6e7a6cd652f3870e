"""Compute the three steps of multi-hot cross-entropy (``model/loss_steps.py``) as Triton kernels.

The first kernel reads the logits, the second forms the loss, the third writes the gradient. The
first and the third read every logit, so they cost the most. Neither compares a column with the
targets while it streams over the row: K comparisons for each logit would take as much time as the
memory does. Instead, the first picks out the target logits beforehand, and the third writes the
target columns a second time, with their exact values. Both therefore cost the same for K = 16 as
for K = 1: of a bf16 logit, 2 bytes are read in the forward pass, 2 read and 2 written in the
backward pass.

Sums have a fixed order, so results are the same bits every time. Block sizes are fixed for the same
reason: tuned at run time, they would change the order of sums from run to run. Row offsets are 64
bits wide, because 16,384 positions times 151,936 tokens are more than 2^31 logits.

Shapes: N latent positions, P vocabulary columns of this part, K slots per bag, R parts of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tst_megatron.model.bags import IGNORED

IGNORED_SLOT: tl.constexpr = tl.constexpr(IGNORED)

SEED: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
"""The value that a running maximum starts from. Minus infinity would give NaN where all logits are
minus infinity; 0 would underflow in a row far below 0."""

MASS_TOLERANCE: tl.constexpr = tl.constexpr(1e-3)
"""The largest difference from 1 that rounding leaves in the sum of a bag's weights. A target that
no part has leaves a larger one."""

BLOCK_BYTES = 16384
"""Bytes of one row that a program holds at a time: 8,192 bf16 logits, 32 for each of its
threads."""

NUM_WARPS = 8
LOSS_ROWS = 64
ENOUGH_ROWS = 1024
"""With fewer rows than this, several programs read each row. Otherwise most of the device would
be idle."""

MAX_PARTS = 8


@triton.jit
def _load_bag(
    targets, slot_weights, row, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Load the targets of a row and their weights, which sum to 1 where any slot counts.

    ``SLOTS`` is the number of slots rounded up to a power of 2, as Triton wants it.
    """
    slots = tl.arange(0, SLOTS)
    is_slot = slots < NUM_SLOTS
    target = tl.load(targets + row * NUM_SLOTS + slots, mask=is_slot, other=IGNORED_SLOT)
    is_valid = is_slot & (target != IGNORED_SLOT)
    if IS_WEIGHTED:
        weight = tl.load(slot_weights + slots, mask=is_valid, other=0.0)
    else:
        weight = is_valid.to(tl.float32)
    total = tl.sum(weight)
    weight = weight / tl.where(total > 0, total, 1.0)
    return target, weight, is_valid, total > 0


@triton.jit
def _statistics_kernel(
    logits, targets, slot_weights, statistics, num_rows, row_stride, first_column,
    NUM_COLUMNS: tl.constexpr, SPAN: tl.constexpr, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Read ``SPAN`` columns of one row once, and store the four numbers of this part."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * SPAN
    target, weight, is_valid, _ = _load_bag(
        targets, slot_weights, row, NUM_SLOTS, SLOTS, IS_WEIGHTED
    )
    column = target - first_column
    is_here = is_valid & (column >= begin) & (column < begin + SPAN) & (column < NUM_COLUMNS)
    weight = tl.where(is_here, weight, 0.0)
    # The target logits are picked out beforehand.
    base = logits + row * row_stride
    target_logit = tl.load(base + column, mask=is_here, other=0.0).to(tl.float32)

    # A running maximum: the sum is rescaled whenever the maximum grows.
    maximum = SEED
    total = 0.0
    for start in range(0, SPAN, BLOCK):
        columns = begin + start + tl.arange(0, BLOCK)
        is_read = (columns < begin + SPAN) & (columns < NUM_COLUMNS)
        block = tl.load(base + columns, mask=is_read, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(block))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(block - larger))
        maximum = larger

    # Relative to the maximum, so that the target term keeps its precision for large logits.
    term = tl.where(weight > 0, weight * (target_logit - maximum), 0.0)
    out = statistics + (part.to(tl.int64) * num_rows + row) * 4
    tl.store(out, maximum)
    tl.store(out + 1, total)
    tl.store(out + 2, tl.sum(term))
    tl.store(out + 3, tl.sum(weight))


@triton.jit
def _loss_kernel(
    parts, targets, slot_weights, losses, log_sum_exps, num_rows,
    NUM_PARTS: tl.constexpr, NUM_SLOTS: tl.constexpr, IS_WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Join the parts of ``ROWS`` rows, and store their losses."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    is_row = rows < num_rows
    maximum = tl.full([ROWS], SEED, tl.float32)
    for part in range(NUM_PARTS):
        at = parts + (part * num_rows + rows) * 4
        maximum = tl.maximum(maximum, tl.load(at, mask=is_row, other=SEED))
    total = tl.zeros([ROWS], tl.float32)
    term = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    for part in range(NUM_PARTS):
        at = parts + (part * num_rows + rows) * 4
        shift = tl.load(at, mask=is_row, other=SEED) - maximum
        part_mass = tl.load(at + 3, mask=is_row, other=0.0)
        total += tl.load(at + 1, mask=is_row, other=0.0) * tl.exp(shift)
        # A part far below the others has an infinite shift. Without a target it must add 0.
        term += tl.load(at + 2, mask=is_row, other=0.0)
        term += tl.where(part_mass > 0, part_mass * shift, 0.0)
        mass += part_mass
    # Whether any slot of the row counts.
    counted = tl.zeros([ROWS], tl.float32)
    for slot in range(NUM_SLOTS):
        target = tl.load(targets + rows * NUM_SLOTS + slot, mask=is_row, other=IGNORED_SLOT)
        weight = (target != IGNORED_SLOT).to(tl.float32)
        if IS_WEIGHTED:
            weight *= tl.load(slot_weights + slot)
        counted += weight
    log_total = tl.log(tl.where(is_row, total, 1.0))
    loss = log_total - term
    loss = tl.where(tl.abs(mass - 1.0) < MASS_TOLERANCE, loss, float("nan"))
    tl.store(losses + rows, tl.where(counted > 0, loss, 0.0), mask=is_row)
    tl.store(log_sum_exps + rows, maximum + log_total, mask=is_row)


@triton.jit
def _gradient_kernel(
    logits, gradient, log_sum_exps, targets, slot_weights, upstream, row_stride,
    gradient_row_stride, first_column, NUM_COLUMNS: tl.constexpr, NUM_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr, IS_WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of ``BLOCK`` columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    target, weight, is_valid, is_counted = _load_bag(
        targets, slot_weights, row, NUM_SLOTS, SLOTS, IS_WEIGHTED
    )
    # A token may fill several slots of a bag; its column is written once, with all their weights.
    is_same = (target[:, None] == target[None, :]) & is_valid[None, :]
    summed_weight = tl.sum(tl.where(is_same, weight[None, :], 0.0), axis=1)
    column = target - first_column
    is_here = is_valid & (column >= begin) & (column < begin + BLOCK) & (column < NUM_COLUMNS)
    log_sum_exp = tl.load(log_sum_exps + row)
    grad_loss = tl.where(is_counted, tl.load(upstream + row), 0.0)
    base = logits + row * row_stride
    out = gradient + row * gradient_row_stride
    # All target logits are read before anything is written, because `gradient` may be `logits`:
    # every warp reads all targets, and a faster warp must not overwrite what a slower one reads.
    target_logit = tl.load(base + column, mask=is_here, other=0.0).to(tl.float32)
    tl.debug_barrier()

    columns = begin + tl.arange(0, BLOCK)
    is_read = columns < tl.where(is_counted, NUM_COLUMNS, 0)
    block = tl.load(base + columns, mask=is_read, other=-float("inf")).to(tl.float32)
    probability = tl.where(is_read, tl.exp(block - log_sum_exp), 0.0)
    tl.store(out + columns, probability * grad_loss, mask=columns < NUM_COLUMNS)
    # A target's column is written twice, by two threads; the exact value must come second.
    tl.debug_barrier()
    exact = tl.exp(target_logit - log_sum_exp) * grad_loss - summed_weight * grad_loss
    tl.store(out + column, exact, mask=is_here)


@torch.library.custom_op("tst_megatron::multi_hot_statistics", mutates_args=())
def statistics(
    logits: Tensor, targets: Tensor, slot_weights: Tensor | None, first_column: int
) -> Tensor:
    """Return [R, N, 4] fp32 statistics of rows [N, P]; see ``loss_steps.statistics``."""
    num_rows, num_columns = logits.shape
    block = BLOCK_BYTES // logits.element_size()
    span = _span(num_rows, num_columns, block)
    num_parts = triton.cdiv(num_columns, span)
    out = logits.new_empty((num_parts, num_rows, 4), dtype=torch.float32)
    if num_rows:
        _statistics_kernel[(num_rows, num_parts)](
            logits, targets, slot_weights, out, num_rows, logits.stride(0), first_column,
            NUM_COLUMNS=num_columns, SPAN=span, **_slots(targets, slot_weights), BLOCK=block,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


@statistics.register_fake
def _(logits, targets, slot_weights, first_column):  # type: ignore[no-untyped-def]
    num_rows, num_columns = logits.shape
    span = _span(num_rows, num_columns, BLOCK_BYTES // logits.element_size())
    num_parts = triton.cdiv(num_columns, span)
    return logits.new_empty((num_parts, num_rows, 4), dtype=torch.float32)


@torch.library.custom_op("tst_megatron::multi_hot_loss", mutates_args=())
def loss_of(parts: Tensor, targets: Tensor, slot_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return [N] loss and [N] log-sum-exp of statistics [R, N, 4]; see ``loss_steps.loss_of``."""
    num_parts, num_rows, _ = parts.shape
    loss, log_sum_exp = parts.new_empty(num_rows), parts.new_empty(num_rows)
    if num_rows:
        slots = _slots(targets, slot_weights)
        del slots["SLOTS"]
        _loss_kernel[(triton.cdiv(num_rows, LOSS_ROWS),)](
            parts, targets, slot_weights, loss, log_sum_exp, num_rows, NUM_PARTS=num_parts,
            **slots, ROWS=LOSS_ROWS, num_warps=2,
        )  # fmt: skip
    return loss, log_sum_exp


@loss_of.register_fake
def _(parts, targets, slot_weights):  # type: ignore[no-untyped-def]
    return parts.new_empty(parts.shape[1]), parts.new_empty(parts.shape[1])


@torch.library.custom_op("tst_megatron::multi_hot_gradient", mutates_args=("gradient",))
def write_gradient(
    gradient: Tensor,
    logits: Tensor,
    log_sum_exp: Tensor,
    targets: Tensor,
    slot_weights: Tensor | None,
    upstream: Tensor,
    first_column: int,
) -> None:
    """Write the gradient of rows [N, P], maybe over the logits; see ``loss_steps``."""
    num_rows, num_columns = logits.shape
    block = BLOCK_BYTES // logits.element_size()
    if num_rows and num_columns:
        _gradient_kernel[(num_rows, triton.cdiv(num_columns, block))](
            logits, gradient, log_sum_exp, targets, slot_weights, upstream, logits.stride(0),
            gradient.stride(0), first_column, NUM_COLUMNS=num_columns,
            **_slots(targets, slot_weights), BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip


def _span(num_rows: int, num_columns: int, block: int) -> int:
    """Return how many columns one program reads: all, or a few blocks where there are few rows.

    The number follows from the shape and not from the device, so that sums have one order.
    """
    if num_rows >= ENOUGH_ROWS:
        return num_columns
    num_blocks = triton.cdiv(num_columns, block)
    return int(triton.cdiv(num_blocks, min(MAX_PARTS, num_blocks)) * block)


def _slots(targets: Tensor, slot_weights: Tensor | None) -> dict[str, int | bool]:
    """Return the compile-time constants that describe a bag."""
    return {
        "NUM_SLOTS": targets.shape[1],
        "SLOTS": triton.next_power_of_2(targets.shape[1]),
        "IS_WEIGHTED": slot_weights is not None,
    }
