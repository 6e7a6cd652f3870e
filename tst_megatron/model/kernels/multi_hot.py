"""The Triton kernels of multi-hot cross-entropy: one reads the logits, one writes the gradient.

Neither compares a column with targets while it streams: K compares for each logit would cost as
much time as the memory does. The target logits are picked out beforehand, and the gradient's target
columns are written a second time, exactly. So both cost the same for K = 16 as for K = 1: 2 bytes
read of a bf16 logit in the forward pass, 2 read and 2 written in the backward pass.

Sums have a fixed order, so results are the same bits every time. Row offsets are 64 bits wide: the
logits of 16,384 positions and 151,936 tokens are more than 2^31. Block sizes are fixed and not
tuned at run time, which would change the order of sums from run to run.

Shapes: N latent positions, P vocabulary columns of this part, K slots per bag, R parts of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SEED: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
"""Where a running maximum starts. Minus infinity would make NaN of a part that is all of it, and
zero would underflow in a row far below it."""

MASS_TOLERANCE: tl.constexpr = tl.constexpr(1e-3)
"""How far from 1 the weights of a bag may sum; a target that no part has leaves more."""

BLOCK_BYTES = 16384
"""Bytes of one row that a program holds at a time: 8,192 bf16 logits, 32 for each of its
threads."""

NUM_WARPS = 8
LOSS_ROWS = 64
ENOUGH_ROWS = 1024
"""With fewer rows than this, each is read by several programs, or most of the device would idle."""

MAX_PARTS = 8


@triton.jit
def _load_bag(
    targets, slot_weights, row, ignore_index, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
):  # fmt: skip
    """The targets of a row and their weights, which sum to 1 where any slot counts."""
    slots = tl.arange(0, SLOTS)
    is_slot = slots < NUM_SLOTS
    target = tl.load(targets + row * NUM_SLOTS + slots, mask=is_slot, other=ignore_index)
    is_valid = is_slot & (target != ignore_index)
    if IS_WEIGHTED:
        weight = tl.load(slot_weights + slots, mask=is_valid, other=0.0)
    else:
        weight = is_valid.to(tl.float32)
    total = tl.sum(weight)
    weight = weight / tl.where(total > 0, total, 1.0)
    return target, weight, is_valid, total > 0


@triton.jit
def _statistics_kernel(
    logits, targets, slot_weights, statistics, num_rows, row_stride, first_column, ignore_index,
    NUM_VALID: tl.constexpr, SPAN: tl.constexpr, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    begin = part * SPAN
    target, weight, is_valid, _ = _load_bag(
        targets, slot_weights, row, ignore_index, NUM_SLOTS, SLOTS, IS_WEIGHTED
    )
    column = target - first_column
    is_here = is_valid & (column >= begin) & (column < begin + SPAN) & (column < NUM_VALID)
    weight = tl.where(is_here, weight, 0.0)
    base = logits + row * row_stride
    target_logit = tl.load(base + column, mask=is_here, other=0.0).to(tl.float32)

    maximum = SEED
    total = 0.0
    for start in range(0, SPAN, BLOCK):
        columns = begin + start + tl.arange(0, BLOCK)
        is_read = (columns < begin + SPAN) & (columns < NUM_VALID)
        block = tl.load(base + columns, mask=is_read, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(block))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(block - larger))
        maximum = larger

    # Relative to the maximum, so that the target term keeps its precision at any magnitude.
    term = tl.where(weight > 0, weight * (target_logit - maximum), 0.0)
    out = statistics + (part.to(tl.int64) * num_rows + row) * 4
    tl.store(out, maximum)
    tl.store(out + 1, total)
    tl.store(out + 2, tl.sum(term))
    tl.store(out + 3, tl.sum(weight))


@triton.jit
def _loss_kernel(
    parts, targets, slot_weights, losses, log_sum_exps, num_rows, ignore_index, z_loss,
    NUM_PARTS: tl.constexpr, NUM_SLOTS: tl.constexpr, IS_WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
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
        # A part far below the others shifts by more than any number if it has no target.
        term += tl.load(at + 2, mask=is_row, other=0.0)
        term += tl.where(part_mass > 0, part_mass * shift, 0.0)
        mass += part_mass
    counted = tl.zeros([ROWS], tl.float32)
    for slot in range(NUM_SLOTS):
        target = tl.load(targets + rows * NUM_SLOTS + slot, mask=is_row, other=ignore_index)
        weight = (target != ignore_index).to(tl.float32)
        if IS_WEIGHTED:
            weight *= tl.load(slot_weights + slot)
        counted += weight
    log_total = tl.log(tl.where(is_row, total, 1.0))
    log_sum_exp = maximum + log_total
    loss = log_total - term + z_loss * log_sum_exp * log_sum_exp
    loss = tl.where(tl.abs(mass - 1.0) < MASS_TOLERANCE, loss, float("nan"))
    tl.store(losses + rows, tl.where(counted > 0, loss, 0.0), mask=is_row)
    tl.store(log_sum_exps + rows, log_sum_exp, mask=is_row)


@triton.jit
def _gradient_kernel(
    logits, gradient, log_sum_exps, targets, slot_weights, upstream, row_stride,
    gradient_row_stride, first_column, ignore_index, z_loss, NUM_COLUMNS: tl.constexpr,
    NUM_VALID: tl.constexpr, NUM_SLOTS: tl.constexpr, SLOTS: tl.constexpr,
    IS_WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    target, weight, is_valid, is_counted = _load_bag(
        targets, slot_weights, row, ignore_index, NUM_SLOTS, SLOTS, IS_WEIGHTED
    )
    # A token may fill several slots of a bag; its column is written once, with all their weights.
    is_same = (target[:, None] == target[None, :]) & is_valid[None, :]
    summed_weight = tl.sum(tl.where(is_same, weight[None, :], 0.0), axis=1)
    column = target - first_column
    is_here = is_valid & (column >= begin) & (column < begin + BLOCK) & (column < NUM_VALID)
    log_sum_exp = tl.load(log_sum_exps + row)
    grad_loss = tl.where(is_counted, tl.load(upstream + row), 0.0)
    scale = grad_loss * (1.0 + 2.0 * z_loss * log_sum_exp)
    base = logits + row * row_stride
    out = gradient + row * gradient_row_stride
    # Read before anything is written: `gradient` may be `logits`. Every warp has a copy of the
    # targets, and one that is ahead must not write what another has yet to read.
    target_logit = tl.load(base + column, mask=is_here, other=0.0).to(tl.float32)
    tl.debug_barrier()

    columns = begin + tl.arange(0, BLOCK)
    is_read = columns < tl.where(is_counted, NUM_VALID, 0)
    block = tl.load(base + columns, mask=is_read, other=-float("inf")).to(tl.float32)
    probability = tl.where(is_read, tl.exp(block - log_sum_exp), 0.0)
    tl.store(out + columns, probability * scale, mask=columns < NUM_COLUMNS)
    # Two threads may write one column, and the exact value is to be the last.
    tl.debug_barrier()
    exact = tl.exp(target_logit - log_sum_exp) * scale - summed_weight * grad_loss
    tl.store(out + column, exact, mask=is_here)


@torch.library.custom_op("tst_megatron::multi_hot_statistics", mutates_args=())
def statistics(
    logits: Tensor,
    targets: Tensor,
    slot_weights: Tensor | None,
    ignore_index: int,
    first_column: int,
    num_valid: int,
) -> Tensor:
    """[R, N, 4] fp32 statistics of rows [N, P]; see ``multi_hot.statistics``."""
    num_rows = logits.shape[0]
    block = BLOCK_BYTES // logits.element_size()
    span = _span(num_rows, max(1, num_valid), block)
    num_parts = triton.cdiv(max(1, num_valid), span)
    out = logits.new_empty((num_parts, num_rows, 4), dtype=torch.float32)
    if num_rows:
        _statistics_kernel[(num_rows, num_parts)](
            logits, targets, slot_weights, out, num_rows, logits.stride(0), first_column,
            ignore_index, NUM_VALID=num_valid, SPAN=span, **_slots(targets, slot_weights),
            BLOCK=block, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


@statistics.register_fake
def _(logits, targets, slot_weights, ignore_index, first_column, num_valid):  # type: ignore[no-untyped-def]
    num_rows = logits.shape[0]
    span = _span(num_rows, max(1, num_valid), BLOCK_BYTES // logits.element_size())
    num_parts = triton.cdiv(max(1, num_valid), span)
    return logits.new_empty((num_parts, num_rows, 4), dtype=torch.float32)


@torch.library.custom_op("tst_megatron::multi_hot_loss", mutates_args=())
def loss_of(
    parts: Tensor, targets: Tensor, slot_weights: Tensor | None, ignore_index: int, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp, [N] fp32 each, of statistics [R, N, 4]; see ``multi_hot.loss_of``."""
    num_parts, num_rows, _ = parts.shape
    loss, log_sum_exp = parts.new_empty(num_rows), parts.new_empty(num_rows)
    if num_rows:
        slots = _slots(targets, slot_weights)
        del slots["SLOTS"]
        _loss_kernel[(triton.cdiv(num_rows, LOSS_ROWS),)](
            parts, targets, slot_weights, loss, log_sum_exp, num_rows, ignore_index, z_loss,
            NUM_PARTS=num_parts, **slots, ROWS=LOSS_ROWS, num_warps=2,
        )  # fmt: skip
    return loss, log_sum_exp


@loss_of.register_fake
def _(parts, targets, slot_weights, ignore_index, z_loss):  # type: ignore[no-untyped-def]
    return parts.new_empty(parts.shape[1]), parts.new_empty(parts.shape[1])


@torch.library.custom_op("tst_megatron::multi_hot_gradient", mutates_args=("gradient",))
def write_gradient(
    gradient: Tensor,
    logits: Tensor,
    log_sum_exp: Tensor,
    targets: Tensor,
    slot_weights: Tensor | None,
    upstream: Tensor,
    ignore_index: int,
    first_column: int,
    num_valid: int,
    z_loss: float,
) -> None:
    """Write the gradient of rows [N, P], also over the logits; see ``multi_hot.write_gradient``."""
    num_rows, num_columns = logits.shape
    block = BLOCK_BYTES // logits.element_size()
    if num_rows and num_columns:
        _gradient_kernel[(num_rows, triton.cdiv(num_columns, block))](
            logits, gradient, log_sum_exp, targets, slot_weights, upstream, logits.stride(0),
            gradient.stride(0), first_column, ignore_index, z_loss, NUM_COLUMNS=num_columns,
            NUM_VALID=num_valid, **_slots(targets, slot_weights), BLOCK=block,
            num_warps=NUM_WARPS,
        )  # fmt: skip


def _span(num_rows: int, num_columns: int, block: int) -> int:
    """Columns that one program reads: all, or whole blocks of them where there are few rows.

    It follows from the shape alone and not from the device, so that sums have one order.
    """
    if num_rows >= ENOUGH_ROWS:
        return num_columns
    num_blocks = triton.cdiv(num_columns, block)
    return int(triton.cdiv(num_blocks, min(MAX_PARTS, num_blocks)) * block)


def _slots(targets: Tensor, slot_weights: Tensor | None) -> dict[str, int | bool]:
    return {
        "NUM_SLOTS": targets.shape[1],
        "SLOTS": triton.next_power_of_2(targets.shape[1]),
        "IS_WEIGHTED": slot_weights is not None,
    }
