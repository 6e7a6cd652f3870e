"""Encode documents by a SentencePiece model: no BOS, the model's EOS after every document.

Text that spells a special token ("</s>", "<s>", "<unk>", "<0x0A>") is ordinary text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from tst_megatron.data.tokenizer.facts import TokenizerFacts


class SentencePieceTokenizer:
    """A SentencePiece model, loaded from its serialised form."""

    def __init__(self, facts: TokenizerFacts, model: bytes) -> None:
        """Load the model, which ``load`` has checked."""
        self.facts = facts
        self._model = model
        self._processor = SentencePieceProcessor()
        self._processor.load_from_serialized_proto(model)

    @classmethod
    def load(cls, model_file: Path) -> Self:
        """Load a .model file; errors are those of ``load_sentencepiece``."""
        processor = load_sentencepiece(model_file)
        model = model_file.read_bytes()
        facts = TokenizerFacts(
            kind="SentencePiece",
            sha256=hashlib.sha256(model).hexdigest(),
            vocab_size=processor.get_piece_size(),
            bos_id=None,
            eod_id=processor.eos_id(),
            special_tokens_in_text=False,
        )
        return cls(facts, model)

    def __reduce__(self) -> tuple[type[Self], tuple[TokenizerFacts, bytes]]:
        """Send the model itself to another process: its file may be elsewhere there."""
        return type(self), (self.facts, self._model)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the ids of complete documents, EOD included."""
        return [np.array(encode_document(self._processor, text), dtype=np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control symbols have none."""
        return cast(str, self._processor.decode(list(ids)))

    def pieces(self) -> list[str]:
        """Return all pieces that text can become, in the order of their ids."""
        processor = self._processor
        return [
            processor.id_to_piece(number)
            for number in range(processor.get_piece_size())
            if not processor.is_control(number) and not processor.is_unknown(number)
        ]

    @property
    def bos_piece(self) -> int | None:
        """The model's own BOS, which no document here begins with; None if it has none."""
        bos_id = self._processor.bos_id()
        return bos_id if bos_id >= 0 else None

    def num_byte_pieces(self) -> int:
        """Count the pieces that stand for a byte; characters without a piece become these."""
        processor = self._processor
        return sum(processor.is_byte(number) for number in range(processor.get_piece_size()))


def load_sentencepiece(model_file: Path) -> SentencePieceProcessor:
    """Load a SentencePiece model whose end-of-document id is safe to use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a SentencePiece model, or one without an EOS that text cannot spell.
    """
    if not model_file.is_file():
        raise FileNotFoundError(
            f"{model_file}: no such file. Give a SentencePiece .model file, or train one."
        )
    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model_file.read_bytes())
        num_pieces = processor.get_piece_size()
    except RuntimeError as error:
        raise ValueError(
            f"{model_file}: not a SentencePiece model ({error}). Give the .model file, not the "
            ".vocab file."
        ) from error
    eos = processor.eos_id()
    if not 0 <= eos < num_pieces:
        raise ValueError(
            f"{model_file}: no EOS control symbol, so documents would end with id {eos}. Train the "
            "tokenizer with one (train_sentencepiece does)."
        )
    return processor


def encode_document(processor: SentencePieceProcessor, text: str) -> list[int]:
    """Return the token ids of one document, its EOS included.

    Raises:
        UnicodeEncodeError: the text holds half a surrogate pair, which has no UTF-8 form.
    """
    # As bytes: for half a surrogate pair in a str, SentencePiece's error names a C++ type.
    data = text.encode()
    ids = cast(list[int], processor.encode(data, out_type=int, add_bos=False, add_eos=False))
    ids.append(processor.eos_id())
    return ids
