"""Probes on held-out text: which tokens cost more, after the loss of all is taken off.

A slice's number is the mean loss of its tokens less that of all other tokens, at the model's best
temperature. Two models at equal loss that differ in it have paid in different places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.audit.items import (
    NO_FOIL,
    Catalogue,
    Flags,
    Ints,
    Kind,
    LeftOut,
    Passage,
    Probe,
    Suite,
)
from tst_megatron.audit.probes import measures
from tst_megatron.audit.probes.categories import characters_of, tokens_of, word_counts
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS

SUITE = "natural"
FEWEST_DOCUMENTS = 24
"""Below, passages are drawn instead of documents."""
FEWEST_TOKENS = 100
"""Of a slice."""
SHORTEST_PASSAGE = 32
FREQUENT_SHARE, RARE_SHARE = 0.5, 0.1
"""Of all tokens: the most frequent ids that make up a half, and the rarest that make up a tenth."""
MOST_ELSEWHERE = 2
"""Times that a repeated pair may stand in other passages: then the text was not known before."""

AIMS = {
    "numbers": "digits, which a mean of tokens cannot order",
    "dates": "dates, in which the order of the parts is the meaning",
    "identifiers": "names of code and codes of letters and digits",
    "names": "names inside sentences",
    "code": "lines of code",
    "rare words": "words that stand at most twice in the text",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What is known of each scored token of the natural suite, each [N]."""

    passage: Ints
    document: Ints
    place: Ints
    """In its passage, from 0."""
    token: Ints
    is_recall: Flags
    """The last token of a pair that stood before in the passage."""
    categories: dict[str, Flags]


def natural(
    documents: Sequence[str], encoder: Encoder, *, max_tokens: int, seed: int
) -> tuple[Catalogue, Labels]:
    """Cut text into passages, and make the probes on them.

    Args:
        documents: held-out text.
        encoder: of the models' tokenizer.
        max_tokens: read in all.
        seed: of the drawings of documents; nothing else here is drawn.

    Raises:
        ValueError: the text is too short.
    """
    passages, labels = _passages(documents, encoder, max_tokens)
    if len(passages) < FEWEST_CLUSTERS:
        num_tokens = sum(len(each.ids) for each in passages)
        raise ValueError(
            f"--text: has {len(passages)} passages of {SHORTEST_PASSAGE} tokens or more "
            f"({num_tokens:,} tokens), and {FEWEST_CLUSTERS} are needed. Give more text"
        )
    found = Catalogue(suites=[Suite(name=SUITE, passages=passages, seed=seed)])
    builder = _Builder(found, labels)
    builder.add(
        "all text",
        "the loss as it is: whether the models are at equal loss",
        np.ones(len(labels.place), dtype=np.bool_),
        kind="loss",
    )
    _add_phases(builder, encoder.bag_size)
    builder.add(
        "recall",
        "the last token of a pair that stood before: looked up in the context, not known by heart",
        labels.is_recall,
    )
    _add_frequencies(builder)
    for name, flags in labels.categories.items():
        builder.add(name, AIMS[name], flags)
    return found, labels


class _Builder:
    """Adds probes on slices of the natural suite."""

    def __init__(self, catalogue: Catalogue, labels: Labels) -> None:
        self.catalogue, self.labels = catalogue, labels
        self.clusters, self.unit = clusters_of(labels)

    def add(
        self,
        name: str,
        aim: str,
        among: Flags,
        *,
        kind: Kind = "slice",
        group: str = "Natural text",
    ) -> None:
        number, clusters = int(among.sum()), len(np.unique(self.clusters[among]))
        if number < FEWEST_TOKENS or clusters < FEWEST_CLUSTERS:
            self.catalogue.left_out.append(
                LeftOut(
                    name=name,
                    reason=f"{number:,} tokens of {clusters} {self.unit} are of this kind; "
                    f"{FEWEST_TOKENS} of {FEWEST_CLUSTERS} are needed. Give more text",
                )
            )
            return
        if kind == "slice":
            reduce, statistic = measures.contrast_of(
                self.clusters, measures.matched_loss, among, ~among
            )
        else:
            reduce, statistic = measures.mean_over(self.clusters, measures.plain_loss, among)
        self.catalogue.probes.append(
            Probe(
                name=name,
                suite=SUITE,
                group=group,
                aim=aim,
                kind=kind,
                is_higher_better=False,
                clusters=self.unit,
                num_clusters=clusters,
                num_tokens=number,
                reduce=reduce,
                statistic=statistic,
            )
        )


def clusters_of(labels: Labels) -> tuple[Ints, str]:
    """Return what is drawn as a whole, for each token, and its name."""
    if len(np.unique(labels.document)) >= FEWEST_DOCUMENTS:
        return np.unique(labels.document, return_inverse=True)[1].astype(np.int64), "documents"
    return labels.passage, "passages"


def _add_phases(builder: _Builder, bag_size: int) -> None:
    """Add the first token past a bag's edge, and the other slots (of large bags, some)."""
    if bag_size < 2:
        return
    phase = builder.labels.place % bag_size
    slots = range(1, bag_size) if bag_size <= 8 else (1, bag_size // 2, bag_size - 1)
    group = "Bags"
    builder.add(
        "first past an edge",
        f"the first token of a bag of {bag_size}, after an edge",
        phase == 0,
        group=group,
    )
    for slot in slots:
        builder.add(
            f"slot {slot + 1}", f"token {slot + 1} of {bag_size}", phase == slot, group=group
        )


def _add_frequencies(builder: _Builder) -> None:
    tokens = builder.labels.token
    counts = np.bincount(tokens)
    order = np.argsort(-counts, kind="stable")
    share_before = (np.cumsum(counts[order]) - counts[order]) / counts.sum()
    frequent = np.zeros(len(counts), dtype=np.bool_)
    frequent[order[share_before < FREQUENT_SHARE]] = True
    rare = np.zeros(len(counts), dtype=np.bool_)
    rare[order[share_before >= 1 - RARE_SHARE]] = True
    builder.add("frequent tokens", "the most frequent tokens, half of the text", frequent[tokens])
    builder.add("rare tokens", "the rarest tokens, a tenth of the text", rare[tokens])


# --- passages and labels -------------------------------------------------------------------------


def _passages(
    documents: Sequence[str], encoder: Encoder, max_tokens: int
) -> tuple[list[Passage], Labels]:
    words = word_counts(documents)
    room = encoder.num_positions - len(encoder.before)
    most = max(room, max_tokens // FEWEST_DOCUMENTS)
    passages: list[Passage] = []
    of_document: list[int] = []
    flags: dict[str, list[Flags]] = {name: [] for name in AIMS}
    num_tokens = 0
    for number, text in enumerate(documents):
        if num_tokens >= max_tokens:
            break
        # One document of millions of characters need not be encoded as a whole.
        text = text[: max_tokens * 8] if len(documents) < FEWEST_DOCUMENTS else text[: most * 8]
        encoded = encoder.encode(text)
        limit = max_tokens - num_tokens if len(documents) < FEWEST_DOCUMENTS else most
        ids, offsets = encoded.ids[:limit], encoded.offsets[:limit]
        kinds = {
            name: tokens_of(characters, offsets, text)
            for name, characters in characters_of(text, words).items()
        }
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            if len(part) < SHORTEST_PASSAGE:
                continue
            passages.append(_passage(encoder.before + part))
            of_document.append(number)
            skipped = 0 if encoder.before else 1
            for name, kind in kinds.items():
                flags[name].append(kind[start + skipped : start + len(part)])
            num_tokens += len(part)
    return passages, _labels(passages, of_document, flags)


def _passage(ids: Sequence[int]) -> Passage:
    """Score every token but the first; the foil of each is the token after it.

    So one reading also asks whether the model takes two neighbours in their order.
    """
    tokens = np.array(ids, dtype=np.int64)
    after = np.append(tokens[2:], NO_FOIL)
    return Passage(
        ids=tokens,
        positions=np.arange(1, len(tokens), dtype=np.int64),
        foils=np.where(after == tokens[1:], NO_FOIL, after),
    )


def _labels(
    passages: Sequence[Passage], documents: Sequence[int], flags: dict[str, list[Flags]]
) -> Labels:
    def each(values: Sequence[int]) -> Ints:
        return np.repeat(
            np.array(values, dtype=np.int64), [len(passage.positions) for passage in passages]
        )

    def joined(parts: Sequence[Ints]) -> Ints:
        return np.concatenate([*parts, np.zeros(0, dtype=np.int64)])

    return Labels(
        passage=each(range(len(passages))),
        document=each(documents),
        place=joined([passage.positions for passage in passages]),
        token=joined([passage.ids[passage.positions] for passage in passages]),
        is_recall=_recalled(passages),
        categories={
            name: np.concatenate([*parts, np.zeros(0, dtype=np.bool_)])
            for name, parts in flags.items()
        },
    )


def _recalled(passages: Sequence[Passage]) -> Flags:
    """Return which scored tokens end a pair that stood before in the passage, and hardly elsewhere.

    Source: Arora et al., Zoology, arXiv 2312.04927, section 3 (their "AR hits").
    """
    elsewhere: Counter[tuple[int, int]] = Counter()
    pairs = []
    for passage in passages:
        ids = passage.ids.tolist()
        of_passage = list(zip(ids, ids[1:], strict=False))
        pairs.append(of_passage)
        elsewhere.update(set(of_passage))
    found = []
    for of_passage in pairs:
        seen: set[tuple[int, int]] = set()
        for pair in of_passage:
            found.append(pair in seen and elsewhere[pair] <= 1 + MOST_ELSEWHERE)
            seen.add(pair)
    return np.array(found, dtype=np.bool_)
