"""Count how often each token occurs, and turn the counts into an entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def count_tokens(ids: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> int:
    """Add up how often each token occurs, and return how many ids were counted.

    Args:
        ids: token ids of any integer type. Ids outside the vocabulary are left out.
        counts: [vocabulary size], added to.
    """
    # In a damaged file they are anything, and a count per number up to 2^31 would fill the memory.
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= len(counts)):
        ids = ids[(ids >= 0) & (ids < len(counts))]
    counts += np.bincount(ids, minlength=len(counts))
    return len(ids)


def entropy_nats(counts: npt.NDArray[np.int64]) -> float:
    """Return the entropy of the tokens' frequencies; 0 where there are none."""
    if not counts.any():
        return 0.0
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())
