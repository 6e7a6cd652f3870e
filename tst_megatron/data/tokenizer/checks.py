"""Find faults of a tokenizer before text is prepared by it, beyond those that every use refuses.

`load_tokenizer` refuses a tokenizer by which documents cannot be told apart. Here are the faults by
which text is lost, and what a person should know of the vocabulary. Existing runs and exports do
not ask.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer, backend_of, unknown_token
from tst_megatron.data.tokenizer.probes import NAMED_PROBES, PROBES
from tst_megatron.data.tokenizer.round_trip import changed_probes
from tst_megatron.data.tokenizer.sentencepiece import SentencePieceTokenizer
from tst_megatron.data.tokenizer.unicode_differences import byte_names

_FILE = "tokenizer.json"
_BYTES_OF_TEXT = (*range(0xC0), *range(0xC2, 0xF5))
"""The others are in no text in UTF-8."""
_CLASS = '"tokenizer_class": "PreTrainedTokenizerFast"'


def tokenizer_faults(source: Path, tokenizer: Tokenizer) -> list[str]:
    """List why no text can be prepared by a tokenizer, though it loads.

    Args:
        source: its file or folder.
        tokenizer: loaded from it.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return []
    if (source / _FILE).is_file():
        form = json.loads((source / _FILE).read_bytes())
        faults = _unknown_eos(source, form, tokenizer) + _other_ids(source, tokenizer)
        return [f"{source}: {fault}." for fault in faults]
    model = next(iter(sorted(source.glob("*.model"))), None)
    if model is None:
        return []
    return [
        f"{source}: has a {model.name} and no {_FILE}, and what transformers makes of it has other "
        f"ids than the model. Give the model itself ({model}), or a folder with a {_FILE}."
    ]


def _unknown_eos(
    source: Path, form: Mapping[str, Any], tokenizer: HuggingFaceTokenizer
) -> list[str]:
    """Check that transformers has not added the EOS, with an id that no model knows."""
    eod_id = tokenizer.facts.eod_id
    listed = {each["content"] for each in form.get("added_tokens", ())} | _listed_beside(source)
    added = json.loads(tokenizer.serialized)["added_tokens"]
    return [
        f"its EOS {each['content']!r} is not in its vocabulary, and would become the new id "
        f"{eod_id}. Name a special token that is (--eod-token)"
        for each in added
        if each["id"] == eod_id
        and each["content"] not in listed
        and each["content"] not in _vocabulary(form)
    ]


def _listed_beside(source: Path) -> set[str]:
    """Tokens that other files of the folder add, with an id of their own."""
    tokens: set[str] = set()
    for name in ("tokenizer_config.json", "added_tokens.json"):
        if (source / name).is_file():
            values = json.loads((source / name).read_bytes())
            added = values.get("added_tokens_decoder", {}).values()
            tokens |= {each["content"] for each in added}
            tokens |= values.keys() if name == "added_tokens.json" else set()
    return tokens


def _other_ids(source: Path, tokenizer: HuggingFaceTokenizer) -> list[str]:
    """Check that the class transformers takes gives the ids of the folder's own file."""
    own = backend_of((source / _FILE).read_text(encoding="utf-8"), special_tokens_in_text=False)
    taken = backend_of(tokenizer.serialized, special_tokens_in_text=False)
    for probe in (*NAMED_PROBES.values(), *PROBES):
        # Older Llama files put a space before a text, and the class only before one without.
        text = probe.lstrip(" ")
        wanted, ids = (each.encode(text, add_special_tokens=False).ids for each in (own, taken))
        if wanted != ids:
            return [
                f"the class that transformers takes for it gives other ids than its {_FILE}: "
                f"{text[:30]!r} becomes {ids[:6]} and not {wanted[:6]}. Write {_CLASS} into its "
                "tokenizer_config.json"
            ]
    return []


# --- what should be known ------------------------------------------------------------------------


def tokenizer_remarks(tokenizer: Tokenizer) -> list[str]:
    """Say what a person should know of a tokenizer before text is prepared by it."""
    remarks = vocabulary_gaps(tokenizer)
    if changed := changed_probes(tokenizer):
        remarks.append(f"the tokenizer does not give back {', '.join(changed)}")
    return remarks


def vocabulary_gaps(tokenizer: Tokenizer) -> list[str]:
    """Say which bytes or characters a vocabulary has no tokens for, with counts."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        if tokenizer.num_byte_pieces():
            return []  # SentencePiece trains all of them or none.
        return _knows_characters(tokenizer.pieces(), "<unk>")
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    form = json.loads(tokenizer.serialized)
    vocabulary = _vocabulary(form)
    if _is_byte_level(form):
        return _lacks_bytes(sum(byte_names()[byte] not in vocabulary for byte in _BYTES_OF_TEXT))
    if form["model"].get("byte_fallback"):
        return _lacks_bytes(sum(f"<0x{byte:02X}>" not in vocabulary for byte in _BYTES_OF_TEXT))
    return _knows_characters(vocabulary, unknown_token(form["model"]))


def _lacks_bytes(number: int) -> list[str]:
    if not number:
        return []
    return [
        f"the vocabulary lacks {number} of the {len(_BYTES_OF_TEXT)} bytes of UTF-8, and "
        "characters with them are lost"
    ]


def _knows_characters(vocabulary: Iterable[str], unknown: str | None) -> list[str]:
    number = sum(len(piece) == 1 for piece in vocabulary)
    become = "vanish" if unknown is None else f"become {unknown!r}"
    return [
        f"the vocabulary has {number:,} single characters and no byte fallback: all others {become}"
    ]


def _is_byte_level(form: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([form.get("pre_tokenizer"), form.get("normalizer")])


def _vocabulary(form: Mapping[str, Any]) -> Mapping[str, Any]:
    vocabulary = form["model"].get("vocab", {})
    # A Unigram model has pairs of a piece and its score.
    return vocabulary if isinstance(vocabulary, dict) else {pair[0]: pair[1] for pair in vocabulary}
