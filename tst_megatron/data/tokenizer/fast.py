"""Encode documents by gigatoken: the ids of a Hugging Face tokenizer, faster and checked.

gigatoken is another implementation of byte-level BPE. It reads some tokenizers wrongly without an
error, so it is trusted only where it agrees with the reference, which is the `tokenizers` library:

- before the first document, on texts that are hard for tokenizers and on texts of the user's own;
- while it runs, on one document in a thousand;
- the reference alone encodes documents with text that spells an added token, whose rules are many,
  those that the tokenizer would normalise, and those with characters that the two libraries take
  for different kinds, as each has the tables of its own version of Unicode.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tst_megatron.data.tokenizer.facts import Tokenizer, TokenizerFacts
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer
from tst_megatron.data.tokenizer.probes import PROBES
from tst_megatron.data.tokenizer.unicode_differences import Encode, unlike_characters
from tst_megatron.system.packages import import_if_there, package_version

DOCUMENTS_PER_CHECK = 1000
"""One document in so many is encoded by the reference too; the hash of its text decides which."""

_SHOWN_IDS = 16


class FastTokenizer:
    """A tokenizer that encodes by gigatoken; ``fast_tokenizer`` makes it and checks it first."""

    def __init__(self, reference: HuggingFaceTokenizer, unlike: str) -> None:
        """Load gigatoken; nothing is compared here.

        Args:
            reference: has the same ids.
            unlike: characters that it does not take for what the reference does.
        """
        self.facts: TokenizerFacts = reference.facts
        self._reference = reference
        self._unlike = unlike
        self._is_unlike = np.zeros(sys.maxunicode + 1, dtype=np.bool_)
        self._is_unlike[_code_points(unlike)] = True
        self._encode = load_gigatoken(reference.serialized)
        form = json.loads(reference.serialized)
        self._normalizes = form["normalizer"] is not None
        added = sorted(token["content"] for token in form["added_tokens"])
        self._added = re.compile("|".join(map(re.escape, added))) if added else None

    def __reduce__(self) -> tuple[type[Self], tuple[HuggingFaceTokenizer, str]]:
        """Send the reference to another process, where gigatoken is loaded from it."""
        return type(self), (self._reference, self._unlike)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the ids of complete documents, BOS and EOD included, in one thread.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair.
            RuntimeError: a document that was looked at has other ids by the reference.
        """
        data = [text.encode() for text in texts]
        is_fast = [not self._needs_reference(text) for text in texts]
        fast = self._documents([each for each, own in zip(data, is_fast, strict=True) if own])
        slow = self._reference.encode(
            [text for text, own in zip(texts, is_fast, strict=True) if not own]
        )
        fast_documents, slow_documents = iter(fast), iter(slow)
        documents = [next(fast_documents if own else slow_documents) for own in is_fast]
        looked_at = [
            place
            for place, own in enumerate(is_fast)
            if own and zlib.crc32(data[place]) % DOCUMENTS_PER_CHECK == 0
        ]
        self._check([texts[place] for place in looked_at], [documents[i] for i in looked_at])
        return documents

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        return self._reference.decode(ids)

    def check(self, texts: Sequence[str]) -> None:
        """Encode texts by gigatoken and by the reference.

        Raises:
            RuntimeError: the ids differ; the first such text and both lists are named.
        """
        self._check(texts, self.encode(texts))

    def _needs_reference(self, text: str) -> bool:
        if self._added is not None and self._added.search(text):
            return True
        if text.isascii():
            return False
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return True
        return bool(self._is_unlike[_code_points(text)].any())

    def _documents(self, data: list[bytes]) -> list[npt.NDArray[np.int32]]:
        """Put BOS, if there is one, and EOD around the ids of each text."""
        bos = [] if self.facts.bos_id is None else [self.facts.bos_id]
        documents = []
        for ids in self._encode(data):
            document = np.empty(len(bos) + len(ids) + 1, dtype=np.int32)
            document[: len(bos)] = bos
            document[len(bos) : -1] = ids
            document[-1] = self.facts.eod_id
            documents.append(document)
        return documents

    def _check(self, texts: Sequence[str], documents: Sequence[npt.NDArray[np.int32]]) -> None:
        for text, fast, reference in zip(
            texts, documents, self._reference.encode(texts), strict=True
        ):
            if not np.array_equal(fast, reference):
                raise RuntimeError(self._difference(text, fast, reference))

    def _difference(
        self, text: str, fast: npt.NDArray[np.int32], reference: npt.NDArray[np.int32]
    ) -> str:
        num_common = min(len(fast), len(reference))
        differs = np.flatnonzero(fast[:num_common] != reference[:num_common])
        first = max(0, (int(differs[0]) if len(differs) else num_common) - _SHOWN_IDS // 4)
        stop = first + _SHOWN_IDS
        return (
            f"gigatoken {package_version('gigatoken')} gives other ids than tokenizers "
            f"{package_version('tokenizers')}: a text of {len(text):,} characters that begins "
            f"{text[:60]!r} has at token {first:,}, near "
            f"{self.decode(reference[first:stop].tolist())!r}, "
            f"{fast[first:stop].tolist()} against {reference[first:stop].tolist()}. Do without the "
            "fast encoder, and delete what it has made."
        )


def fast_tokenizer(reference: Tokenizer, sample: Sequence[str]) -> FastTokenizer:
    """Return a faster tokenizer, if it gives the same ids for built-in texts and a sample.

    Args:
        reference: loaded from a Hugging Face tokenizer.
        sample: documents of the text that is to be encoded.

    Raises:
        ImportError: gigatoken is not installed.
        ValueError: this kind of tokenizer has no fast form that can be trusted.
        RuntimeError: the ids of a text differ; the message shows the text and both lists.
    """
    reference, form = check_fast(reference)
    unlike = unlike_characters(json.dumps(form["pre_tokenizer"]), load_gigatoken)
    if form["normalizer"] is not None:
        # Python decides what is normalised, by tables that do not have them.
        unlike += "".join(filter(_is_unassigned, map(chr, range(sys.maxunicode + 1))))
    tokenizer = FastTokenizer(reference, unlike)
    tokenizer.check([*PROBES, *sample])
    return tokenizer


def check_fast(reference: Tokenizer) -> tuple[HuggingFaceTokenizer, dict[str, Any]]:
    """Refuse a tokenizer without a fast form before any text is read.

    Args:
        reference: as for ``fast_tokenizer``.

    Returns:
        The tokenizer, and its serialised form.

    Raises:
        ImportError: gigatoken is not installed.
        ValueError: this kind of tokenizer has no fast form that can be trusted.
    """
    if not isinstance(reference, HuggingFaceTokenizer):
        raise ValueError(
            "fast encoder: a SentencePiece model has no fast form with the same ids. Leave it out, "
            "or use a byte-level BPE tokenizer in Hugging Face format."
        )
    form: dict[str, Any] = json.loads(reference.serialized)
    if problems := _problems(form):
        raise ValueError(
            f"fast encoder: not for this tokenizer: {'; '.join(problems)}. Leave it out."
        )
    load_gigatoken(reference.serialized)
    return reference, form


def load_gigatoken(serialized: str) -> Encode:
    """Load gigatoken from the text of a tokenizer.json.

    Raises:
        ImportError: it is not installed.
        ValueError: it does not know this kind of tokenizer.
    """
    gigatoken = import_if_there("gigatoken")
    if gigatoken is None:
        raise ImportError(
            "fast encoder: gigatoken is not installed: pip install 'tst-megatron[fast]'"
        )
    try:
        tokenizer = gigatoken.Tokenizer.from_json(serialized)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"fast encoder: gigatoken cannot read this tokenizer ({reason}). Leave it out."
        ) from error

    def encode(data: list[bytes]) -> list[npt.NDArray[Any]]:
        layout = tokenizer.encode_batch(data, parallel=False).layout
        return [layout.content.data[start:stop] for start, stop in pairwise(layout.offsets.data)]

    return encode


def _problems(form: dict[str, Any]) -> list[str]:
    model, normalizer = form["model"], form["normalizer"]
    problems = []
    if model["type"] != "BPE" or model.get("byte_fallback"):
        problems.append("its model is not byte-level BPE")
    if model.get("dropout"):
        problems.append("it has dropout, so its ids are random")
    if normalizer is not None and normalizer["type"] != "NFC":
        problems.append(f"it normalises text ({normalizer['type']}), other than by NFC")
    return problems


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _is_unassigned(character: str) -> bool:
    return unicodedata.category(character) == "Cn"
