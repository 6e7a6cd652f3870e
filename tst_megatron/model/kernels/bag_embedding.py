"""Compute the bag embedding as Triton kernels: mean of K rows, and its gradient in a fixed order.

Forward, a program reads K rows and writes their mean where Megatron's layers want it. No row of an
ordinary look-up is ever stored.

Backward, positions are sorted by the row that they read. So each row of the table has one writer,
which adds in the order of positions: no atomic adds, and the bits are the same every time.
A token at a few per cent of all positions would make its writer slow. Therefore segments of 64
sorted positions that all read one row are summed beforehand, each by a program of its own, and the
writer adds their sums. The number of programs follows from shapes alone, so that a CUDA graph can
hold them.

Row offsets are 64 bits wide, also where tokens are not: a table of 151,936 rows has more than 2^31
numbers from 14,135 columns on, and positions times columns reach that sooner.

Shapes: B micro-batch, L latent positions, K tokens per bag, H hidden, P table rows on this rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 1024
"""Columns that one program works on."""

SEGMENT = 64
"""Sorted positions in a segment. A row's writer adds fewer than twice as many gradients itself."""


@triton.jit
def _mean_kernel(
    table, tokens, means, first_row, num_rows, num_hidden, length, batch,
    NUM_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ``BLOCK`` columns of the mean of one bag."""
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < num_hidden
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(NUM_SLOTS):
        row = tl.load(tokens + bag * NUM_SLOTS + slot).to(tl.int64) - first_row
        # Nothing is read for a token of another rank. Triton's interpreter takes no mask that a
        # scalar condition and a block are joined to.
        is_here = (row >= 0) & (row < num_rows)
        is_read = columns < tl.where(is_here, num_hidden, 0)
        total += tl.load(table + row * num_hidden + columns, mask=is_read, other=0.0).to(tl.float32)
    # [B, L] in, [L, B] out.
    place = (bag % length) * batch + bag // length
    tl.store(means + place * num_hidden + columns, total / NUM_SLOTS, mask=is_column)


@triton.jit
def _gradient_at(
    upstream, positions, place, columns, is_column, num_hidden, length, batch,
    NUM_SLOTS: tl.constexpr,
):  # fmt: skip
    """Load the upstream gradient of the bag that the sorted position ``place`` belongs to."""
    bag = tl.load(positions + place) // NUM_SLOTS
    row = (bag % length) * batch + bag // length
    gradient = tl.load(upstream + row * num_hidden + columns, mask=is_column, other=0.0)
    return gradient.to(tl.float32)


@triton.jit
def _segment_kernel(
    upstream, keys, positions, sums, num_rows, num_hidden, length, batch,
    NUM_SLOTS: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum a segment, if all its positions read one row of this rank."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < num_hidden
    begin = segment * SEGMENT
    first = tl.load(keys + begin)
    if (first == tl.load(keys + begin + SEGMENT - 1)) & (first < num_rows):
        total = tl.zeros([BLOCK], tl.float32)
        for offset in range(SEGMENT):
            total += _gradient_at(
                upstream, positions, begin + offset, columns, is_column, num_hidden, length, batch,
                NUM_SLOTS,
            )  # fmt: skip
        tl.store(sums + segment * num_hidden + columns, total, mask=is_column)


@triton.jit
def _row_kernel(
    upstream, starts, positions, sums, gradient, num_hidden, length, batch,
    NUM_SLOTS: tl.constexpr, SEGMENT: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write, or add to, the gradient of one row of the table."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < num_hidden
    place = tl.load(starts + row).to(tl.int64)
    end = tl.load(starts + row + 1).to(tl.int64)
    is_touched = place < end
    total = tl.zeros([BLOCK], tl.float32)
    while place < end:
        if (place % SEGMENT == 0) & (place + SEGMENT <= end):
            at = sums + (place // SEGMENT) * num_hidden + columns
            total += tl.load(at, mask=is_column, other=0.0)
            place += SEGMENT
        else:
            total += _gradient_at(
                upstream, positions, place, columns, is_column, num_hidden, length, batch,
                NUM_SLOTS,
            )  # fmt: skip
            place += 1
    total = total / NUM_SLOTS
    at = gradient + row * num_hidden + columns
    if ADDS:
        if is_touched:
            tl.store(at, tl.load(at, mask=is_column, other=0.0) + total, mask=is_column)
    else:
        tl.store(at, total, mask=is_column)


@torch.library.custom_op("tst_megatron::bag_mean", mutates_args=())
def bag_mean(table: Tensor, tokens: Tensor, first_row: int, out_dtype: torch.dtype) -> Tensor:
    """Return means [L, B, H] of bags [B, L, K]; tokens outside [first_row, first_row + P) add 0."""
    batch, length, num_slots = tokens.shape
    num_rows, num_hidden = table.shape
    means = table.new_empty((length, batch, num_hidden), dtype=out_dtype)
    if means.numel():
        block, num_blocks = _blocks(num_hidden)
        _mean_kernel[(batch * length, num_blocks)](
            table, tokens, means, first_row, num_rows, num_hidden, length, batch,
            NUM_SLOTS=num_slots, BLOCK=block,
        )  # fmt: skip
    return means


@bag_mean.register_fake
def _(table, tokens, first_row, out_dtype):  # type: ignore[no-untyped-def]
    batch, length, _ = tokens.shape
    return table.new_empty((length, batch, table.shape[1]), dtype=out_dtype)


@torch.library.custom_op("tst_megatron::bag_gradient", mutates_args=("gradient",))
def write_gradient(
    gradient: Tensor, upstream: Tensor, tokens: Tensor, first_row: int, adds: bool
) -> None:
    """Write the gradient of a table [P, H], or add to it, from that of the means [L, B, H].

    Sums are fp32 and rounded once. Adding happens in fp32 as well.
    """
    batch, length, num_slots = tokens.shape
    num_rows, num_hidden = gradient.shape
    block, num_blocks = _blocks(num_hidden)
    rows = tokens.view(-1) - first_row
    is_here = (rows >= 0) & (rows < num_rows)
    # int32 has fewer bits to sort. Rows of other ranks come last, as a row beyond the table.
    keys, positions = rows.where(is_here, num_rows).int().sort(stable=True)
    every_row = torch.arange(num_rows + 1, dtype=torch.int32, device=keys.device)
    starts = torch.searchsorted(keys, every_row, out_int32=True)
    num_segments = keys.numel() // SEGMENT
    sums = upstream.new_empty((num_segments, num_hidden), dtype=torch.float32)
    shape = (num_hidden, length, batch)
    if num_segments:
        _segment_kernel[(num_segments, num_blocks)](
            upstream, keys, positions, sums, num_rows, *shape,
            NUM_SLOTS=num_slots, SEGMENT=SEGMENT, BLOCK=block,
        )  # fmt: skip
    if gradient.numel():
        _row_kernel[(num_rows, num_blocks)](
            upstream, starts, positions, sums, gradient, *shape,
            NUM_SLOTS=num_slots, SEGMENT=SEGMENT, ADDS=adds, BLOCK=block,
        )  # fmt: skip


def _blocks(num_hidden: int) -> tuple[int, int]:
    """Return the columns of one program, and how many programs make a row."""
    block = min(MAX_BLOCK, triton.next_power_of_2(num_hidden))
    return block, triton.cdiv(num_hidden, block)
