"""Does text come back from its tokens? Some documents are decoded again, and compared.

A document comes back if its tokens decode to its text, to a Unicode normal form of it (NFC, NFKC,
...), or with a space in front: many tokenizers make that of every text. What comes back otherwise
was lost: white space, characters that the vocabulary lacks, capital letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from tst_megatron.data.tokenizer.facts import Tokenizer, body
from tst_megatron.data.tokenizer.probes import NAMED_PROBES, PROBES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FIRST_CHARACTERS = 1 << 17
"""Documents that start in so many characters of a unit are compared; of many small units some."""
DOCUMENTS_PER_COMPARISON = 512
"""Beyond them, one in so many."""
MOST_CHARACTERS = 20
"""Of those that were lost, so many are kept."""
NORMAL_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
CHANGED_FRACTION = 0.01
"""Share of the compared documents that may come back otherwise, if nothing else is said."""

SPACES, LETTERS = "white space is changed", "capital letters are lost"
CHARACTERS, OTHER = "characters are lost", "other text comes back"


@dataclass(slots=True)
class RoundTrip:
    """Counts of documents that were decoded again and compared with their text."""

    compared: int = 0
    normalised: int = 0
    """Those that come back in a Unicode normal form, or with a space in front."""
    changed: dict[str, int] = field(default_factory=dict)
    """Reasons why others do not come back, with the number of documents for each."""
    characters: str = ""
    """Some that were lost."""

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """Return the counts that ``record`` gave."""
        return cls(
            compared=int(values["compared"]),
            normalised=int(values["normalised"]),
            changed={str(why): int(number) for why, number in values["changed"].items()},
            characters=str(values["characters"]),
        )

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def num_changed(self) -> int:
        """Documents that do not come back."""
        return sum(self.changed.values())

    def add(self, text: str, back: str) -> None:
        """Compare a text with what its tokens decode to."""
        self.compared += 1
        why, lost = difference(text, back)
        if why is None:
            self.normalised += text != back
            return
        self.changed[why] = self.changed.get(why, 0) + 1
        self._lose(lost)

    def take(self, other: RoundTrip) -> None:
        """Add what came of others."""
        self.compared += other.compared
        self.normalised += other.normalised
        for why, number in other.changed.items():
            self.changed[why] = self.changed.get(why, 0) + number
        self._lose(other.characters)

    def _lose(self, characters: str) -> None:
        all_lost = dict.fromkeys(self.characters + characters)
        self.characters = "".join(all_lost)[:MOST_CHARACTERS]

    def is_above(self, fraction: float) -> bool:
        """Tell whether a larger share does not come back, and not just one or two by chance."""
        return self.num_changed > max(fraction * self.compared, 2 if fraction else 0)

    def __str__(self) -> str:
        """In words, for a person."""
        if not self.compared:
            return "no document was decoded again"
        if not self.num_changed:
            same = "all come back"
            if self.normalised:
                same += f", {self.normalised:,} in a Unicode normal form or with a space in front"
            return f"{self.compared:,} documents were decoded again, {same}"
        reasons = [f"{why} in {number:,}" for why, number in sorted(self.changed.items())]
        if self.characters:
            shown = " ".join(map(_shown, self.characters[:5]))
            reasons.append(f"lost are {shown}" + (" ..." if len(self.characters) > 5 else ""))
        return (
            f"{self.num_changed:,} of {self.compared:,} documents that were decoded again do not "
            f"come back: {'; '.join(reasons)}"
        )


def difference(text: str, back: str) -> tuple[str | None, str]:
    """Return why a text does not come back, and the lost characters; (None, "") if it does.

    Args:
        text: of a document.
        back: what its tokens decode to.
    """
    texts = (text, *(unicodedata.normalize(form, text) for form in NORMAL_FORMS))
    if back in texts or back.removeprefix(" ") in texts:
        return None, ""
    before, after = (unicodedata.normalize("NFKC", each) for each in (text, back))
    if "".join(before.split()) == "".join(after.split()):
        return SPACES, ""
    if lost := sorted({each for each in set(text) - set(back) if not each.isspace()}):
        small = set(back.casefold())
        if not all(each.casefold() in small for each in lost):
            return CHARACTERS, "".join(lost)[:MOST_CHARACTERS]
    if "".join(before.casefold().split()) == "".join(after.casefold().split()):
        return LETTERS, ""
    return OTHER, ""


def come_back(
    tokenizer: Tokenizer, texts: Sequence[str], documents: Sequence[npt.NDArray[np.int32]]
) -> Iterator[tuple[str, str]]:
    """Each text, and what its document decodes to without BOS and EOD.

    Args:
        tokenizer: made the documents.
        texts: of them.
        documents: as ``Tokenizer.encode`` gives them.
    """
    for text, ids in zip(texts, documents, strict=True):
        yield text, tokenizer.decode(body(ids.tolist(), tokenizer.facts))


@dataclass(slots=True)
class Sample:
    """Choice of the documents of a unit that are decoded again, with the result."""

    is_from_the_start: bool = True
    found: RoundTrip = field(default_factory=RoundTrip)
    num_documents: int = 0
    """That were offered."""
    num_characters: int = 0
    """In them."""

    def offer(
        self, tokenizer: Tokenizer, texts: Sequence[str], documents: Sequence[npt.NDArray[np.int32]]
    ) -> None:
        """Compare some of these documents; arguments as for ``come_back``."""
        chosen = []
        for number, text in enumerate(texts):
            place = self.num_documents + number
            is_first = self.is_from_the_start and self.num_characters < FIRST_CHARACTERS
            if is_first or (place + 1) % DOCUMENTS_PER_COMPARISON == 0:
                chosen.append(number)
            self.num_characters += len(text)
        self.num_documents += len(texts)
        pairs = [(texts[number], documents[number]) for number in chosen]
        for text, back in come_back(tokenizer, *zip(*pairs, strict=True)) if pairs else ():
            self.found.add(text, back)


def tried(tokenizer: Tokenizer, texts: Sequence[str]) -> RoundTrip:
    """Encode texts and decode them again."""
    found = RoundTrip()
    for text, back in come_back(tokenizer, texts, tokenizer.encode(texts)):
        found.add(text, back)
    return found


def changed_probes(tokenizer: Tokenizer) -> list[str]:
    """The kinds of text that a tokenizer changes, by name."""
    named = [name for name, text in NAMED_PROBES.items() if tried(tokenizer, [text]).changed]
    if not named and (number := tried(tokenizer, PROBES).num_changed):
        named = [f"{number} of {len(PROBES)} texts that are hard for tokenizers"]
    return named


def _shown(character: str) -> str:
    if character.isprintable() and not unicodedata.combining(character):
        return f"{character!r}"
    return f"U+{ord(character):04X}"
