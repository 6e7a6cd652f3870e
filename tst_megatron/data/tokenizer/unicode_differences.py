"""Characters that two encoders of byte-level BPE take for different kinds of characters.

Pre-tokenizers ask whether a character is a letter, a digit or a space. Each library answers by the
tables of some version of Unicode, where later versions have more characters. Ids tell little of it:
most text has the same tokens either way. So both encoders get the tokenizer's pre-tokenizer with a
vocabulary in which any two neighbours that it leaves together become one token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend  # type: ignore[import-untyped, unused-ignore]

Encode = Callable[[list[bytes]], list[npt.NDArray[Any]]]
"""The ids of texts in UTF-8, without BOS and EOD."""

# Planes with characters of texts; ASCII has been what it is since before there were tables.
_CHARACTERS = tuple(
    map(chr, (*range(0x80, 0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)))
)
_CHARACTERS_PER_TEXT = 64


@cache
def unlike_characters(pre_tokenizer: str, load: Callable[[str], Encode]) -> str:
    """All characters that `tokenizers` and another encoder do not take for the same kind.

    Args:
        pre_tokenizer: of a tokenizer.json, as JSON; byte-level.
        load: the other encoder of a tokenizer.json.
    """
    form = json.dumps(revealing_form(json.loads(pre_tokenizer)))
    backend, other = Backend.from_str(form), load(form)

    def differing(texts: Sequence[str]) -> list[int]:
        theirs = other([text.encode() for text in texts])
        ours = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        pairs = zip(ours, theirs, strict=True)
        return [i for i, (own, ids) in enumerate(pairs) if not np.array_equal(own.ids, ids)]

    groups = [
        _CHARACTERS[first : first + _CHARACTERS_PER_TEXT]
        for first in range(0, len(_CHARACTERS), _CHARACTERS_PER_TEXT)
    ]
    suspects = [
        character
        for place in differing(["".join(map(_among_others, group)) for group in groups])
        for character in groups[place]
    ]
    return "".join(suspects[place] for place in differing([*map(_among_others, suspects)]))


def revealing_form(pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json by whose ids neighbouring characters are seen to be together or apart.

    A merge joins the last byte of a character and the first of the next, where one of both is not
    ASCII; so an ASCII character that stands between two others serves one of them only.

    Args:
        pre_tokenizer: of another tokenizer.json.
    """
    names = byte_names()
    ascii_bytes, last_bytes, first_bytes = names[:0x80], names[0x80:0xC0], names[0xC0:]
    merges = [(first, second) for first in ascii_bytes for second in first_bytes]
    merges += [(last, second) for last in last_bytes for second in ascii_bytes + first_bytes]
    tokens = [*names, *("".join(pair) for pair in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


def _among_others(character: str) -> str:
    """A character beside each kind, with neighbours of its own on both sides."""
    return f"a{character}A1{character}!!{character} "


def byte_names() -> list[str]:
    """The characters by which byte-level BPE writes the 256 bytes, as in GPT-2."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    names = {byte: chr(byte) for byte in printed}
    names |= {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [names[byte] for byte in range(0x100)]
