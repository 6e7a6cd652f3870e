"""Encode text for probes, and place what matters inside one bag or across the edge of two.

A place is counted from the start of what the model reads, as bags are in training: bag j holds the
tokens from j*K to (j+1)*K - 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tst_megatron.audit.items import NO_FOIL, Passage
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer, backend_of

Placement = Literal["inside", "across"]

FILLER = (
    "The road goes along the river and over the hill. There is a small house near the old "
    "bridge. In the morning the people of the village go to the market. "
)
"""Stands before an item, cut to the length that puts the item where it is wanted."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """(start, end) of each token's characters."""

    def token_at(self, character: int) -> int | None:
        """Return the number of the token that holds a character."""
        for number, (start, end) in enumerate(self.offsets):
            if start <= character < end:
                return number
        return None


class Encoder:
    """A tokenizer as the probes use it.

    Attributes:
        bag_size: K.
        num_positions: of a passage, at most.
    """

    def __init__(
        self, tokenizer: HuggingFaceTokenizer, *, bag_size: int, num_positions: int
    ) -> None:
        """Load the tokenizer's backend."""
        self.bag_size, self.num_positions = bag_size, num_positions
        self._backend = backend_of(tokenizer.serialized, special_tokens_in_text=False)
        bos = tokenizer.facts.bos_id
        self.before = [] if bos is None else [bos]
        """The tokens that begin what is read."""
        # So many that every phase of a bag can be had.
        repeats = -(-2 * bag_size // len(self.encode(FILLER).ids)) + 1
        self._filler = self.encode(FILLER * repeats).ids

    def encode(self, text: str) -> Encoded:
        """Return the tokens of a text alone, without BOS and EOD."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded(list(encoding.ids), [tuple(each) for each in encoding.offsets])

    def choice(
        self,
        context: str,
        right: str,
        wrong: str,
        generator: random.Random,
        *,
        pair: tuple[int, int] | None = None,
        placement: Placement | None = None,
    ) -> Passage | None:
        """Make an item: is the right continuation likelier than the wrong one?

        The first token in which the two differ is scored, so that all before it is the same.

        Args:
            context: what is read before.
            right: its continuation.
            wrong: another.
            generator: of the filler's length.
            pair: characters of the context whose tokens are to be placed.
            placement: where their tokens are to be: in one bag, or in two.

        Returns:
            None where the tokens cannot be placed, do not differ, or do not fit.
        """
        one, other = self.encode(context + right), self.encode(context + wrong)
        if len(right) == len(wrong) and one.offsets != other.offsets:
            # One would be likelier for how its characters fall into tokens.
            return None
        at = next(
            (at for at, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)) if a != b), None
        )
        if at is None:
            return None
        first = 0
        if pair is not None and placement is not None:
            tokens = [one.token_at(character) for character in pair]
            if tokens[0] is None or tokens[1] is None or max(tokens[0], tokens[1]) >= at:
                return None
            phase = self.phase(abs(tokens[1] - tokens[0]), placement, generator)
            if phase is None:
                return None
            first = phase - min(tokens[0], tokens[1])
        filler = self._filler_for(first) if placement else []
        ids = [*self.before, *filler, *one.ids[: at + 1]]
        return self.passage(ids, [len(ids) - 1], [other.ids[at]])

    def phase(self, distance: int, placement: Placement, generator: random.Random) -> int | None:
        """Return a place in its bag for the first of two tokens; None where there is none.

        Both placements are made of the same distances: those of tokens that fit into one bag.
        """
        if not 0 < distance < self.bag_size:
            return None
        inside = self.bag_size - distance
        if placement == "inside":
            return generator.randrange(inside)
        return generator.randrange(inside, self.bag_size)

    def _filler_for(self, first: int) -> list[int]:
        """Return filler after which the next token is at ``first``, counted modulo K."""
        length = (first - len(self.before)) % self.bag_size + self.bag_size
        return self._filler[-length:]

    def filled_to(self, place: int) -> list[int]:
        """Return the beginning of a passage after which the next token is at a phase of its bag."""
        return [*self.before, *self._filler_for(place)]

    def passage(
        self, ids: Sequence[int], positions: Sequence[int], foils: Sequence[int] | None = None
    ) -> Passage | None:
        """Return a passage; None where it is longer than what every model can read."""
        if len(ids) > self.num_positions:
            return None
        wrong = [NO_FOIL] * len(positions) if foils is None else foils
        return Passage(
            ids=np.array(ids, dtype=np.int64),
            positions=np.array(positions, dtype=np.int64),
            foils=np.array(wrong, dtype=np.int64),
        )
