"""Keep the bandwidths of a healthy cluster in a JSON file, which is made once per site."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tst_megatron.system.files import write_beside


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Bus bandwidth of all-reduces for one shape of job, in GB/s; None where one rank is alone."""

    backend: str
    num_bytes: int
    num_ranks: int
    num_ranks_in_node: int
    within_node: float | None
    over_all_nodes: float | None

    def is_like(self, other: Baseline) -> bool:
        """Tell whether both are from jobs of one shape."""
        return self._shape() == other._shape()

    def _shape(self) -> tuple[str, int, int, int]:
        return self.backend, self.num_bytes, self.num_ranks, self.num_ranks_in_node


def read_baselines(path: Path) -> list[Baseline]:
    """Read the baselines in a file.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read.
    """
    try:
        return [Baseline(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: no file of baselines ({error}). Make one with --write-baseline"
        ) from error


def add_baseline(path: Path, new: Baseline) -> None:
    """Write a baseline into a file beside those for other shapes of job."""
    others = [old for old in read_baselines(path) if not old.is_like(new)] if path.exists() else []
    write_beside(path, json.dumps([asdict(entry) for entry in [*others, new]], indent=1) + "\n")


def bandwidth_problems(
    measured: float | None, baseline: float | None, min_fraction: float
) -> list[str]:
    """Check that a bandwidth is not too far below the healthy cluster's, both in GB/s."""
    if measured is None or baseline is None or measured >= min_fraction * baseline:
        return []
    return [
        f"all-reduce at {measured:.2f} GB/s, {measured / baseline:.2f} of the baseline "
        f"{baseline:.2f}; {min_fraction:g} is needed"
    ]
