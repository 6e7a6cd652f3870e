"""Find the parts of a text that are numbers, dates, identifiers, names, code or rare words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from tst_megatron.audit.items import Flags

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "numbers": re.compile(r"\d+(?:[.,]\d+)*"),
    "dates": re.compile(
        rf"\b\d{{4}}-\d\d?-\d\d?\b|\b\d\d?[./]\d\d?[./]\d{{2,4}}\b"
        rf"|\b(?:{_MONTHS})\s+\d{{1,4}}\b|\b\d{{1,2}}\s+(?:{_MONTHS})\b|\b(?:1[5-9]|20)\d\d\b"
    ),
    "identifiers": re.compile(
        r"\b[a-z]+(?:_[a-z0-9]+)+\b|\b[a-z]+(?:[A-Z][a-z0-9]+)+\b|\b[A-Z]+(?:_[A-Z0-9]+)+\b"
        r"|\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{3,}\b"
    ),
    # A capital that begins no sentence.
    "names": re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*"),
    "code": re.compile(
        r"^.*(?:[;{}]\s*$|^\s*(?:def|class|import|return|if|for|while|else|from|self\.)\b.*"
        r"|\w+\(.*\)\s*[:;]?\s*$|\s[=!+-]=\s|\w = .*)$",
        re.MULTILINE,
    ),
}
"""The parts of a text by what they are; one token may be of several kinds."""
RARE_WORDS = "rare words"
_WORD = re.compile(r"[^\W\d_]{4,}")
MOST_OF_A_RARE_WORD = 2
"""Times that it stands in all of the text."""


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Count the words of a text, without regard to capitals."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word[0].lower() for word in _WORD.finditer(text))
    return counts


def characters_of(text: str, words: Counter[str]) -> dict[str, Flags]:
    """Return for each category which characters of a text are of it.

    Args:
        text: a document.
        words: counts over all documents.
    """
    found = {name: np.zeros(len(text), dtype=np.bool_) for name in (*PATTERNS, RARE_WORDS)}
    for name, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            found[name][match.start() : match.end()] = True
    for match in _WORD.finditer(text):
        if words[match[0].lower()] <= MOST_OF_A_RARE_WORD:
            found[RARE_WORDS][match.start() : match.end()] = True
    return found


def tokens_of(characters: Flags, offsets: list[tuple[int, int]], text: str) -> Flags:
    """Return which tokens hold a character of a category; spaces before a word do not count.

    Args:
        characters: [characters of the text].
        offsets: (start, end) of each token.
        text: the document.
    """
    sums = np.concatenate([[0], np.cumsum(characters)])
    return np.array([sums[end] > sums[start] for start, end in offsets], dtype=np.bool_)
