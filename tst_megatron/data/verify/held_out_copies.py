"""Find held-out documents that are in the training text too, token for token."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tst_megatron.data.manifest import Manifest
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.token_scan import scan

# What normalisation changes: runs of spaces, line ends, compatibility forms, accents, case, control
# and invisible characters.
_PROBE = (
    " a  b\t\r\n\u00a0\uff21\ufb01 e\u0301 \u00e9 \u2163 \u0130 \u200b\ufeff\U0001d504 AbC\x01 "
)

_SPACES = ("", " ", "\n")


class HeldOutDocuments:
    """The documents of a held-out split, by hashes of their tokens: 16 bytes of memory each."""

    def __init__(self, name: str, reader: IndexedReader) -> None:
        """Make room for the hashes of a split's documents."""
        self.name = name
        self.num_repeated = 0
        """Training documents that are also in this split."""
        self.first_repeated: tuple[int, int] | None = None
        """The first of them, and where it is in this split."""
        self._reader = reader
        self._hashes = np.empty(reader.num_documents, dtype=np.uint64)
        self._order: npt.NDArray[np.int64] | None = None

    def again(self) -> Self:
        """Return the same documents, to look them up in another training text."""
        new = copy.copy(self)
        new.num_repeated, new.first_repeated = 0, None
        return new

    def take(self, first: int, hashes: npt.NDArray[np.uint64]) -> None:
        """Take the hashes of documents of this split."""
        self._hashes[first : first + len(hashes)] = hashes

    def look_up(self, training: IndexedReader, first: int, hashes: npt.NDArray[np.uint64]) -> None:
        """Count those training documents, from ``first`` on, that are in this split."""
        if not len(self._hashes):
            return
        if self._order is None:
            self._order = np.argsort(self._hashes)
            self._hashes = self._hashes[self._order]
        places = np.searchsorted(self._hashes, hashes)
        places[places == len(self._hashes)] = 0
        for found in np.flatnonzero(self._hashes[places] == hashes):
            document, here = first + int(found), int(self._order[places[found]])
            if np.array_equal(training.tokens(document), self._reader.tokens(here)):
                self.num_repeated += 1
                self.first_repeated = self.first_repeated or (document, here)


def held_out_of(manifest: Manifest) -> list[HeldOutDocuments]:
    """Return the held-out documents of a folder, with its name.

    A split that cannot be read is left out; ``verify_folder`` says what is wrong with it.
    """
    found = []
    for name, split in manifest.splits().items():
        if name != "train":
            with contextlib.suppress(OSError, ValueError):
                reader = split.reader()
                reader.check()
                documents = HeldOutDocuments(f"{manifest.path.parent} ({name})", reader)
                scan(reader, manifest.tokenizer, take_hashes=documents.take)
                found.append(documents)
    return found


def keeps_text(tokenizer: Tokenizer) -> bool:
    """Tell whether different texts always have different tokens, as far as probes can show.

    A tokenizer that normalises gives some texts the same tokens, and so does one with an added
    token that takes in the spaces beside it (lstrip, rstrip). The split follows the text.
    """
    facts = tokenizer.facts
    ids: npt.NDArray[Any] = tokenizer.encode([_PROBE])[0][:-1]
    if tokenizer.decode(ids[facts.bos_id is not None :].tolist()) != _PROBE:
        return False
    # Not by their decoded text, which spells some added tokens otherwise.
    return all(
        len({tuple(each.tolist()) for each in tokenizer.encode(texts)}) == len(texts)
        for texts in _spaced(_added_tokens(tokenizer))
    )


def _added_tokens(tokenizer: Tokenizer) -> list[str]:
    # A SentencePiece model has none.
    serialized = getattr(tokenizer, "serialized", None)
    if serialized is None:
        return []
    return [token["content"] for token in json.loads(serialized)["added_tokens"]]


def _spaced(tokens: Sequence[str]) -> list[list[str]]:
    """For each token: texts that differ in the spaces beside it alone."""
    return [
        [f"a{before}{token}{after}b" for before in _SPACES for after in _SPACES] for token in tokens
    ]
