"""Order in natural text: neighbours that could be swapped, and windows that are permuted."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from tst_megatron.audit.items import (
    NO_FOIL,
    Catalogue,
    Flags,
    Ints,
    LeftOut,
    Passage,
    Probe,
    Reduce,
    Statistic,
    Suite,
)
from tst_megatron.audit.probes import measures, natural
from tst_megatron.audit.probes.natural import FEWEST_TOKENS, Labels, clusters_of
from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS

SUITE = "windows"
GROUP = "Order in natural text"
CONTEXT = 40
"""Tokens before a window, about."""
CONTINUATION = 2
"""Tokens after it, which are scored."""


def order(suite: Suite, labels: Labels, *, bag_size: int, num_items: int, seed: int) -> Catalogue:
    """Make the probes of order on the passages of the natural suite.

    Args:
        suite: natural text, where the foil of each token is the token after it.
        labels: of its scored tokens.
        bag_size: K.
        num_items: windows of each placement.
        seed: of their permutations.
    """
    found = _neighbours(suite, labels, bag_size)
    found.add(_windows(suite, labels, bag_size, num_items, seed))
    return found


def _neighbours(suite: Suite, labels: Labels, bag_size: int) -> Catalogue:
    found = Catalogue()
    foils = np.concatenate([passage.foils for passage in suite.passages])
    clusters, unit = clusters_of(labels)
    has_foil = foils != NO_FOIL
    is_last = labels.place % bag_size == bag_size - 1
    inside, across = has_foil & ~is_last, has_foil & is_last
    for name, among, aim in (
        ("neighbours, inside", inside, "a token against the one after it, both in one bag"),
        ("neighbours, across", across, "a token against the one after it, an edge between them"),
    ):
        reduce, statistic = measures.mean_over(clusters, measures.is_right, among)
        found.probes.append(
            _probe(name, natural.SUITE, aim, unit, clusters[among], (reduce, statistic))
        )
    parts = measures.contrast_of(clusters, measures.is_right, across, inside)
    found.probes.append(
        _probe(
            "neighbours, edge effect",
            natural.SUITE,
            "right order across an edge less that inside a bag",
            unit,
            clusters[has_foil],
            parts,
            is_higher_better=False,
        )
    )
    return found


def _probe(
    name: str,
    suite: str,
    aim: str,
    unit: str,
    clusters: Ints,
    parts: tuple[Reduce, Statistic],
    *,
    is_higher_better: bool = True,
    is_gain: bool = False,
) -> Probe:
    return Probe(
        name=name,
        suite=suite,
        group=GROUP,
        aim=aim,
        kind="gain" if is_gain else "accuracy",
        is_higher_better=is_higher_better,
        clusters=unit,
        num_clusters=len(np.unique(clusters)),
        num_tokens=len(clusters),
        reduce=parts[0],
        statistic=parts[1],
        floor=0.0 if is_gain else None,
    )


# --- windows -------------------------------------------------------------------------------------


def _windows(suite: Suite, labels: Labels, bag_size: int, num_items: int, seed: int) -> Catalogue:
    """Permute the last K tokens before a continuation: what does the continuation lose?"""
    unit_of_token, unit = clusters_of(labels)
    starts = np.cumsum([0, *(len(each.positions) for each in suite.passages)])[:-1]
    passages: list[Passage] = []
    kinds: list[tuple[str, bool, int]] = []
    for name, shift in (("window, one bag", 0), ("window, two bags", bag_size // 2)):
        generator = random.Random(f"{seed} {name}")
        for number, place in _places(suite.passages, bag_size, shift, num_items, generator):
            source = suite.passages[number].ids
            ids = source[max(0, (place - CONTEXT) // bag_size * bag_size) : place + bag_size]
            after = source[place + bag_size : place + bag_size + CONTINUATION]
            mixed = _permuted(ids[-bag_size:], generator)
            cluster = int(unit_of_token[starts[number]])
            for window, is_permuted in ((ids[-bag_size:], False), (mixed, True)):
                passages.append(_passage(ids[:-bag_size], window, after))
                kinds += [(name, is_permuted, cluster)] * CONTINUATION
    found = Catalogue(suites=[Suite(name=SUITE, passages=passages, seed=seed)])
    names = np.array([kind[0] for kind in kinds])
    has_moved = np.array([kind[1] for kind in kinds], dtype=np.bool_)
    clusters = np.array([kind[2] for kind in kinds], dtype=np.int64)
    for name in ("window, one bag", "window, two bags"):
        _add(found, name, names == name, has_moved, clusters, unit)
    if not found.probes:
        found.suites = []
    return found


def _add(
    found: Catalogue, name: str, among: Flags, is_permuted: Flags, clusters: Ints, unit: str
) -> None:
    number = len(np.unique(clusters[among]))
    if number < FEWEST_CLUSTERS or among.sum() < FEWEST_TOKENS:
        reason = f"the text has windows of {number} {unit} alone. Give more text"
        found.left_out.append(LeftOut(name=name, reason=reason))
        return
    of_name = np.full(len(clusters), -1, dtype=np.int64)
    of_name[among] = np.unique(clusters[among], return_inverse=True)[1]
    parts = measures.contrast_of(
        of_name, measures.matched_loss, among & is_permuted, among & ~is_permuted
    )
    aim = f"nats that two tokens cost more after a permuted window: {name.partition(', ')[2]}"
    found.probes.append(
        _probe(name, SUITE, aim, unit, clusters[among & is_permuted], parts, is_gain=True)
    )


def _places(
    passages: Sequence[Passage],
    bag_size: int,
    shift: int,
    num_items: int,
    generator: random.Random,
) -> list[tuple[int, int]]:
    """Return (passage, place) of windows, each at ``shift`` in its bag, none over another."""
    length = CONTEXT + 2 * bag_size + CONTINUATION
    found = [
        (number, start // bag_size * bag_size + shift)
        for number, passage in enumerate(passages)
        for start in range(CONTEXT, len(passage.ids) - 2 * bag_size - CONTINUATION, length)
    ]
    chosen = generator.sample(found, min(len(found), num_items))
    return [
        (number, place)
        for number, place in sorted(chosen)
        if len(set(passages[number].ids[place : place + bag_size].tolist())) > 1
    ]


def _permuted(window: Ints, generator: random.Random) -> Ints:
    """Return the tokens of a window in another order than they have."""
    ids = window.tolist()
    while True:
        mixed = generator.sample(ids, len(ids))
        if mixed != ids:
            return np.array(mixed, dtype=np.int64)


def _passage(before: Ints, window: Ints, after: Ints) -> Passage:
    ids = np.concatenate([before, window, after])
    positions = np.arange(len(ids) - len(after), len(ids), dtype=np.int64)
    return Passage(ids=ids, positions=positions, foils=np.full(len(after), NO_FOIL))
