"""Copying and induction on random tokens, where nothing but the context helps.

Source: Olsson et al., In-context Learning and Induction Heads, arXiv 2209.11895.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np

from tst_megatron.audit.items import Catalogue, LeftOut, Passage, Probe, Suite
from tst_megatron.audit.probes import measures
from tst_megatron.audit.probes.choices import Task
from tst_megatron.audit.probes.encoding import FILLER, Encoder, Placement
from tst_megatron.audit.probes.forms import NOUNS, SIZES
from tst_megatron.audit.probes.pairs import COLOURS, DEEDS, NAMES, THINGS
from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS

SUITE = "copying"
COPY_LENGTHS = (8, 24, 96)
DISTANCES = {"near": 4, "middle": 16, "far": 48}
"""Tokens from a pair to where its second half is asked for."""
PLACED_DISTANCE = 12
NUM_BEFORE = 4
"""Random tokens before the pair."""
ITEMS_PER_COPY = 4
"""Copies for so many times fewer items: each scores many tokens."""
GROUP = "Copying and induction"


def ordinary_tokens(encoder: Encoder) -> list[int]:
    """Return ids of tokens that ordinary English words have, so that models know them."""
    nouns = " ".join(word for pair in NOUNS for word in pair)
    words = " ".join([*NAMES, *THINGS, *COLOURS, *SIZES, *DEEDS, nouns])
    return sorted(set(encoder.encode(f"{FILLER} {words} 0 1 2 3 4 5 6 7 8 9").ids))


def copying(encoder: Encoder, *, num_items: int, seed: int) -> Catalogue:
    """Make the probes of copying: random tokens twice, at several lengths."""
    tokens, found = ordinary_tokens(encoder), Catalogue()
    passages: list[Passage] = []
    kinds: list[tuple[int, int]] = []
    for length in COPY_LENGTHS:
        generator = random.Random(f"{seed} copying {length}")
        for _ in range(max(FEWEST_CLUSTERS, num_items // ITEMS_PER_COPY)):
            once = generator.choices(tokens, k=length)
            ids = [*encoder.before, *once, *once]
            start = len(encoder.before)
            # The first token of a copy cannot be known.
            positions = [*range(start + 1, start + length)]
            positions += [position + length for position in positions]
            passage = encoder.passage(ids, positions)
            if passage is None:
                break
            passages.append(passage)
            kinds += [(length, 1)] * (length - 1) + [(length, 2)] * (length - 1)
    of_token = np.array(kinds, dtype=np.int64).reshape(-1, 2)
    item = np.repeat(np.arange(len(passages)), [len(each.positions) for each in passages])
    found.suites.append(Suite(name=SUITE, passages=passages, seed=seed))
    for length in COPY_LENGTHS:
        of_length = of_token[:, 0] == length
        if not of_length.any():
            reason = f"two copies do not fit into {encoder.num_positions:,} positions"
            found.left_out.append(LeftOut(name=f"copying {length}", reason=reason))
            continue
        first, second = (of_length & (of_token[:, 1] == copy) for copy in (1, 2))
        clusters = np.where(of_length, item - item[of_length].min(), -1)
        reduce, statistic = measures.contrast_of(clusters, measures.matched_loss, first, second)
        found.probes.append(
            Probe(
                name=f"copying {length}",
                suite=SUITE,
                group=GROUP,
                aim=f"nats that a second copy of {length} random tokens costs less than the first",
                kind="gain",
                is_higher_better=True,
                clusters="items",
                num_clusters=int(clusters.max()) + 1,
                num_tokens=int(second.sum()),
                reduce=reduce,
                statistic=statistic,
                floor=0.0,
            )
        )
    return found


def _induction(
    distance: int,
    tokens: Sequence[int],
    encoder: Encoder,
    generator: random.Random,
    placement: Placement | None,
) -> Passage | None:
    """Draw a pair in random tokens, then its first half: which token follows?

    The wrong token stands in the context too, at another place.
    """
    drawn = generator.sample(tokens, min(len(tokens), NUM_BEFORE + 2 + distance - 2))
    if len(drawn) < NUM_BEFORE + distance:
        drawn += generator.choices(drawn[NUM_BEFORE + 2 :], k=NUM_BEFORE + distance - len(drawn))
    first, second = drawn[NUM_BEFORE], drawn[NUM_BEFORE + 1]
    wrong = generator.choice([each for each in drawn if each not in (first, second)])
    if placement is None:
        start = encoder.before
    else:
        phase = encoder.phase(1, placement, generator)
        if phase is None:
            return None
        start = encoder.filled_to(phase - NUM_BEFORE)
    ids = [*start, *drawn, first, second]
    return encoder.passage(ids, [len(ids) - 1], [wrong])


def induction_tasks(encoder: Encoder) -> list[Task]:
    """Return induction at several distances, and with its pair inside a bag or across an edge."""
    tokens = ordinary_tokens(encoder)
    found = [
        Task(
            name=f"induction {name}",
            group=GROUP,
            aim=f"what followed a random token {distance} tokens before",
            draw=partial(_induction, distance, tokens),
        )
        for name, distance in DISTANCES.items()
    ]
    placed = partial(_induction, PLACED_DISTANCE, tokens)
    return [
        *found,
        Task(
            name="induction",
            group=GROUP,
            aim="what followed a random token",
            draw=placed,
            is_placed=True,
        ),
    ]
