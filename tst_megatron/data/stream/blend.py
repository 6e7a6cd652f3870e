"""Decide which corpus each sample of a blend comes from, in integers that keep the weights.

The rule is that of Webster, or Sainte-Lague, for seats in a parliament: sample j of a corpus whose
share is w is due at time (j + 1/2) / w, and samples are dealt as they fall due. After n samples a
corpus has had w n of them, give or take (1 + w C) / 2 for C corpora, and the exact number follows
without dealing the samples before (``dealt_before``).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction


class Blend:
    """Weights as whole numbers, and the order in which they deal samples."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Make a blend of corpora with the given weights, which need not add up to anything.

        Raises:
            ValueError: there is no weight, or one is not above 0.
        """
        if not weights or not all(weight > 0 for weight in weights):
            raise ValueError(f"weights {list(weights)}: there must be one, and each is above 0")
        # Decimal weights are meant exactly: 0.1 is one part in ten.
        shares = [Fraction(str(weight)) for weight in weights]
        common = math.lcm(*(share.denominator for share in shares))
        self._weights = [int(share * common) for share in shares]
        self._total = sum(self._weights)
        period = math.lcm(*self._weights)
        self._half_intervals = [period // weight for weight in self._weights]

    def dealt_before(self, sample: int) -> list[int]:
        """Return how many of the first ``sample`` samples each corpus has."""
        corpora = len(self._weights)
        # floor(w t + 1/2) samples of a corpus are due until time t, so at t = sample - C / 2 there
        # are `sample` of all corpora at the most, and fewer than C are missing. `time` is 2 t.
        time = max(0, 2 * sample - corpora)
        counts = [(weight * time + self._total) // (2 * self._total) for weight in self._weights]
        for corpus in self._deal(counts, sample - sum(counts)):
            counts[corpus] += 1
        return counts

    def deal(self, first: int, num_samples: int) -> list[tuple[int, int]]:
        """Return (corpus, number of the sample in that corpus) of the samples from ``first`` on."""
        counts = self.dealt_before(first)
        dealt = []
        for corpus in self._deal(counts, num_samples):
            dealt.append((corpus, counts[corpus]))
            counts[corpus] += 1
        return dealt

    def _deal(self, counts: Sequence[int], num_samples: int) -> list[int]:
        """Return the corpora of the next samples, after each corpus has had ``counts``."""
        due = [
            ((2 * count + 1) * half, corpus)
            for corpus, (count, half) in enumerate(zip(counts, self._half_intervals, strict=True))
        ]
        heapq.heapify(due)
        corpora = []
        for _ in range(num_samples):
            time, corpus = due[0]
            corpora.append(corpus)
            heapq.heapreplace(due, (time + 2 * self._half_intervals[corpus], corpus))
        return corpora
