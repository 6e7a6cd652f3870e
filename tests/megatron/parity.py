"""Gradients of one model in every parallel layout, assembled and compared with one process's.

All layouts load one checkpoint, which the one-process run saves, and see the same micro-batches:
the auxiliary loss of the experts depends on them. Layouts of as many ranks share one process group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from layouts import Case, Layout
from parity_rank import Part, parts_of_layouts
from processes import run_ranks
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """A case of the whole model, whatever the layout."""

    gradients: dict[str, Tensor]
    losses: list[dict[str, list[float]]]
    """By micro-batch of the global batch."""
    routing: dict[tuple[int, int], Tensor]
    """By layer and micro-batch of the global batch: [positions, experts], bool."""
    disagreement: float
    """Largest |difference| of two copies of an element, against the norm of its parameter."""
    parts: list[Part]


def run_layouts(
    wanted: Mapping[Layout, Sequence[Case]], folder: Path
) -> dict[tuple[str, Case], Result]:
    """Compute cases in layouts; those of as many ranks share their processes.

    Args:
        wanted: the cases of each layout; ``ALONE`` saves the checkpoints that all others load.
        folder: holds ``tokenizer.model``.
    """
    results = {}
    for num_ranks in sorted({layout.num_ranks for layout in wanted}):
        shared = [
            (layout, cases) for layout, cases in wanted.items() if layout.num_ranks == num_ranks
        ]
        of_ranks = run_ranks(parts_of_layouts, num_ranks, shared, folder, preload="preloaded")
        for key in of_ranks[0]:
            results[key] = assemble([parts[key] for parts in of_ranks])
    return results


def assemble(parts: list[Part]) -> Result:
    """Put together what the ranks hold; every element of every parameter must be there."""
    gradients: dict[str, Tensor] = {}
    disagreement = 0.0
    pieces = [piece for part in parts for piece in part.pieces]
    for piece in pieces:
        whole = gradients.setdefault(piece.name, torch.full(piece.shape, torch.nan))
        whole[piece.place] = piece.values
    for piece in pieces:
        whole = gradients[piece.name]
        difference = (whole[piece.place] - piece.values).abs().max().item()
        disagreement = max(disagreement, difference / max(whole.norm().item(), 1e-8))
    for name, whole in gradients.items():
        assert whole.isfinite().all(), f"{name} is not whole or not finite"
    losses: dict[int, dict[str, list[float]]] = {}
    routing: dict[tuple[int, int], dict[int, Tensor]] = {}
    for part in parts:
        for i, report in enumerate(part.reports):
            losses[i * part.num_data_ranks + part.data_rank] = report
        for layer, maps in part.routing.items():
            for i, of_positions in enumerate(maps):
                key = (layer, i * part.num_data_ranks + part.data_rank)
                routing.setdefault(key, {})[part.tensor_rank] = of_positions
    return Result(
        gradients=gradients,
        losses=[losses[i] for i in sorted(losses)],
        # Sequence parallelism cuts [L, B] positions along L.
        routing={
            key: torch.cat([of_rank[rank] for rank in sorted(of_rank)])
            for key, of_rank in routing.items()
        },
        disagreement=disagreement,
        parts=parts,
    )


@dataclass(frozen=True)
class Error:
    """How far a gradient is from the reference."""

    parameter: str
    relative: float
    """|g - g_ref| / max(|g_ref|, 1e-8), Euclidean norms."""
    largest: float
    """The same of the elements that are largest in absolute value."""


def errors(result: Result, reference: Result) -> list[Error]:
    """The error of every parameter, the worst first."""
    assert result.gradients.keys() == reference.gradients.keys()
    found = []
    for name, expected in reference.gradients.items():
        difference = result.gradients[name] - expected
        found.append(
            Error(
                name,
                difference.norm().item() / max(expected.norm().item(), 1e-8),
                difference.abs().max().item() / max(expected.abs().max().item(), 1e-8),
            )
        )
    return sorted(found, key=lambda error: -error.relative)


def have_equal_routing(result: Result, reference: Result) -> bool:
    """Whether every position of every micro-batch went to the same experts in every layer."""
    return result.routing.keys() == reference.routing.keys() and all(
        torch.equal(of_positions, reference.routing[key])
        for key, of_positions in result.routing.items()
    )
