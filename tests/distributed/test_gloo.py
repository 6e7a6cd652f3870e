"""What gloo refuses and the CPU host gives: pieces of different sizes."""

import torch
from processes import run_ranks

from tst_megatron.megatron.cpu import gloo

ROWS = (3, 0, 2)


def piece(rank, of):
    """[rows of ``of``, 2] that rank ``rank`` has for rank ``of``; the same everywhere."""
    generator = torch.Generator().manual_seed(10 * rank + of)
    return torch.randn(ROWS[of], 2, generator=generator)


def gathered_and_scattered():
    rank = torch.distributed.get_rank()
    gathered = [torch.zeros(rows, 2) for rows in ROWS]
    gloo.all_gather_of_any_sizes(gathered, piece(0, rank))
    scattered = torch.zeros(ROWS[rank], 2)
    gloo.reduce_scatter_of_any_sizes(scattered, [piece(rank, of) for of in range(len(ROWS))])
    return gathered, scattered


def test_pieces_of_different_sizes_arrive_whole():
    results = run_ranks(gathered_and_scattered, len(ROWS))
    for rank, (gathered, scattered) in enumerate(results):
        for of, tensor in enumerate(gathered):
            assert torch.equal(tensor, piece(0, of))
        expected = sum(piece(other, rank) for other in range(len(ROWS)))
        torch.testing.assert_close(scattered, expected)
