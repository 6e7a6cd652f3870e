"""Encode documents by a Hugging Face tokenizer: as its template has it, and EOD at the end.

transformers decides what a folder's files mean (`AutoTokenizer`, as in training, evaluation and
everywhere else); its `tokenizers` backend alone then encodes, also in workers, which need not load
transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Backend  # type: ignore[import-untyped, unused-ignore]
from tokenizers import decoders

from tst_megatron.data.tokenizer.facts import TokenizerFacts
from tst_megatron.data.tokenizer.files import HUGGING_FACE_FILES, tokenizer_sha256

_PROBE = "a"
# Characters that no vocabulary has: of private use, unassigned, for control.
_RARE = "\U0010fffd \u0378 \x01"


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, loaded from its serialised form.

    Attributes:
        facts: what must be known of it.
        serialized: the form, as a tokenizer.json holds it.
    """

    def __init__(self, facts: TokenizerFacts, serialized: str) -> None:
        """Load the backend, which ``load_hugging_face`` has checked."""
        self.facts = facts
        self.serialized = serialized
        self._backend = backend_of(serialized, special_tokens_in_text=facts.special_tokens_in_text)
        if self._backend.decoder is None:
            # `tokenizers` would put a space between tokens, which no text has.
            self._backend.decoder = decoders.Fuse()
        self.template_adds_eod = bool(_template(self._backend)[1])
        """True where transformers itself ends every text with EOD."""

    def __reduce__(self) -> tuple[type[Self], tuple[TokenizerFacts, str]]:
        """Send the backend itself to another process, which then needs no transformers."""
        return type(self), (self.facts, self.serialized)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the ids of complete documents, BOS and EOD included."""
        documents = []
        for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=True):
            ids = encoding.ids
            if not self.template_adds_eod:
                ids.append(self.facts.eod_id)
            documents.append(np.array(ids, dtype=np.int32))
        return documents

    def beginning(self, text: str) -> list[int]:
        """Return the ids of a document's beginning: BOS by the template, no EOD."""
        (document,) = self.encode([text])
        return [int(token_id) for token_id in document[:-1]]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids, special tokens spelled out or left out."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def markup_tokens(self) -> dict[str, int]:
        """Return added tokens that look like markup and are not special: text can spell their ids.

        Such as Qwen3's "<tool_call>" and "<|fim_prefix|>": they become their ids in every text,
        in preparation, training and evaluation alike.
        """
        return {
            token.content: token_id
            for token_id, token in sorted(self._backend.get_added_tokens_decoder().items())
            if not token.special and re.fullmatch(r"<.+>", token.content)
        }


def load_hugging_face(
    folder: Path, *, special_tokens_in_text: bool = False
) -> HuggingFaceTokenizer:
    """Load a tokenizer in Hugging Face format, if documents can be told apart by its tokens.

    Args:
        folder: holds its files, perhaps beside a model.
        special_tokens_in_text: text that spells a special token becomes its id.

    Raises:
        FileNotFoundError: the folder has no file of a tokenizer.
        ValueError: it cannot be read, has no fast form or no EOS, or its template adds other
            tokens than BOS before a text and EOS after it.
    """
    sha256 = tokenizer_sha256(folder)
    tokenizer = _read(folder)
    eod_id = tokenizer.eos_token_id
    serialized = tokenizer.backend_tokenizer.to_str()
    backend = backend_of(serialized, special_tokens_in_text=special_tokens_in_text)
    problems = _eod_problems(tokenizer, backend, special_tokens_in_text)
    before, after = _template(backend)
    if before is None or after is None:
        problems.append("its template changes how a text is encoded. Give it one that only adds")
    elif before not in ([], [tokenizer.bos_token_id]) or after not in ([], [eod_id]):
        problems.append(
            f"its template adds {_names(backend, before)} before a text and "
            f"{_names(backend, after)} after it, only BOS ({tokenizer.bos_token!r}) and EOS "
            f"({tokenizer.eos_token!r}) can be. Give it a template of these"
        )
    if problems:
        raise ValueError(f"{folder}: not a tokenizer for documents: {'; '.join(problems)}.")
    facts = TokenizerFacts(
        kind="HuggingFace",
        sha256=sha256,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        bos_id=before[0] if before else None,
        eod_id=eod_id,
        special_tokens_in_text=special_tokens_in_text,
    )
    return HuggingFaceTokenizer(facts, serialized)


def name_eos(folder: Path, token: str) -> None:
    """Make another added token of a tokenizer its EOS, in its files.

    Raises:
        ValueError: it has no such added token, which transformers would add as a new id.
    """
    tokenizer = _read(folder)
    if tokenizer.eos_token == token:
        return
    added = tokenizer.get_added_vocab()
    if token not in added:
        raise ValueError(
            f"--eod-token {token!r}: not among the tokenizer's added tokens, which are "
            f"{', '.join(sorted(added)[:20])}. Name one of these."
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file() or name == "tokenizer_config.json":
            values = json.loads(path.read_bytes()) if path.is_file() else {}
            values["eos_token"] = token
            text = json.dumps(values, indent=2, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


def _read(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # transformers, tokenizers and their parsers raise many kinds, also bare Exception.
    except Exception as error:
        raise ValueError(
            f"{folder}: transformers cannot read a tokenizer there ({error}). Give a folder with "
            f"one: some of {', '.join(HUGGING_FACE_FILES)}."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{folder}: {type(tokenizer).__name__} has no fast form (tokenizer.json), by which "
            "documents are encoded. Save the tokenizer with one first."
        )
    return tokenizer


def backend_of(serialized: str, *, special_tokens_in_text: bool) -> Any:
    """Return the encoder of a tokenizer.json, for complete documents."""
    backend = Backend.from_str(serialized)
    # What a tokenizer.json says of lengths is for batches of a model, not for documents.
    backend.no_truncation()
    backend.no_padding()
    # Not part of the serialised form.
    backend.encode_special_tokens = not special_tokens_in_text
    return backend


def _eod_problems(tokenizer: Any, backend: Any, special_tokens_in_text: bool) -> list[str]:
    token, eod_id = tokenizer.eos_token, tokenizer.eos_token_id
    if eod_id is None:
        return ["it has no EOS, which ends documents. Name one of its special tokens (--eod-token)"]
    if backend.token_to_id(token) != eod_id:
        return [f"its EOS {token!r} is not in its vocabulary. Name a special token that is"]
    if eod_id in backend.encode(_RARE, add_special_tokens=False).ids:
        return [
            f"its unknown token is its EOS {token!r}, so characters that it lacks would end "
            "documents. Name another special token as EOS (--eod-token)"
        ]
    if special_tokens_in_text:
        return []
    if eod_id in backend.encode(token, add_special_tokens=False).ids:
        return [
            f"text that spells its EOS {token!r} becomes its id {eod_id}, so text could end a "
            "document. Name a special token as EOS (--eod-token)"
        ]
    return _spelled_problems(tokenizer, backend)


def _spelled_problems(tokenizer: Any, backend: Any) -> list[str]:
    """List special tokens that text spells although it must not: words of the vocabulary."""
    spelled = [
        token.content
        for token_id, token in sorted(backend.get_added_tokens_decoder().items())
        if token.special
        # Everything that the vocabulary lacks becomes the unknown token, in any text.
        and token.content != tokenizer.unk_token
        and token_id in backend.encode(token.content, add_special_tokens=False).ids
    ]
    if spelled:
        # tokenizer_config.json may not name it: look it up in the vocabulary, which is slow.
        unknown = unknown_token(json.loads(backend.to_str())["model"])
        spelled = [token for token in spelled if token != unknown]
    if not spelled:
        return []
    return [
        f"text that spells {', '.join(map(repr, spelled[:5]))} becomes the special id, by the "
        "vocabulary itself. Take these words out of it, or let text spell special tokens "
        "(--special-tokens-in-text)"
    ]


def _template(backend: Any) -> tuple[list[int] | None, list[int] | None]:
    """Return what the template adds before and after a text; None if it does something else."""
    probe = _probe(backend)
    text = backend.encode(probe, add_special_tokens=False).ids
    framed = backend.encode(probe, add_special_tokens=True).ids
    for start in range(len(framed) - len(text) + 1):
        if framed[start : start + len(text)] == text:
            return framed[:start], framed[start + len(text) :]
    return None, None


def _probe(backend: Any) -> str:
    """Return a text that a tokenizer has tokens for: a letter, or a piece of its vocabulary."""
    if backend.encode(_PROBE, add_special_tokens=False).ids:
        return _PROBE
    special = set(backend.get_added_tokens_decoder())
    for number in sorted(backend.get_vocab(with_added_tokens=False).values()):
        text = str(backend.decode([number]))
        if number not in special and backend.encode(text, add_special_tokens=False).ids:
            return text
    return _PROBE


def unknown_token(model: Mapping[str, Any]) -> str | None:
    """Return the token that stands for everything a vocabulary lacks.

    Args:
        model: of a tokenizer.json.
    """
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    token = model.get("unk_token")
    return None if token is None else str(token)


def _names(backend: Any, ids: Sequence[int]) -> str:
    return " ".join(repr(backend.id_to_token(token_id)) for token_id in ids) or "nothing"
