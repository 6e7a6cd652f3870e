"""Say what a tokenizer is: the facts that a manifest records, and what every loaded one can do.

A document is [BOS] text EOD. BOS is put there if, and only if, the tokenizer itself puts it before
a text: the template of a Hugging Face tokenizer decides, and a SentencePiece model has none. EOD is
the tokenizer's EOS. Text that spells a special token ("</s>", "<|endoftext|>") is ordinary text,
never the special id, unless that is asked for. This holds in preparation, training and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Kind = Literal["SentencePiece", "HuggingFace"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """The facts about a tokenizer that a reader of its tokens needs."""

    kind: Kind
    sha256: str
    """Of its file, or of all its files (``tokenizer_sha256``)."""
    vocab_size: int
    """Largest id + 1, added tokens included."""
    bos_id: int | None
    """Id before every document; None for none."""
    eod_id: int
    """Id after every document."""
    special_tokens_in_text: bool
    """True where text that spells a special token became its id."""

    def __post_init__(self) -> None:
        """Refuse values that a damaged manifest may hold."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"tokenizer kind {self.kind!r}, known are {', '.join(get_args(Kind))}")


class Tokenizer(Protocol):
    """A tokenizer that is loaded. It can be sent to another process."""

    @property
    def facts(self) -> TokenizerFacts:
        """The facts that a manifest records of it."""
        ...

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the ids of complete documents, BOS and EOD included, in one thread.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair, which has no UTF-8 form.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        ...


def body(ids: list[int], facts: TokenizerFacts) -> list[int]:
    """Return the ids of a document without its BOS and EOD."""
    start = 1 if facts.bos_id is not None and ids[0] == facts.bos_id else 0
    stop = len(ids) - 1 if ids[-1] == facts.eod_id else len(ids)
    return ids[start:stop]


def tokenizer_rules(facts: TokenizerFacts) -> dict[str, str]:
    """Say in words what was done to every document."""
    bos = "no BOS" if facts.bos_id is None else f"BOS ({facts.bos_id}) before every document"
    literal = "ordinary text, never special ids"
    if facts.special_tokens_in_text:
        literal = "read as the special ids"
    return {
        "document": f"{bos}; EOD ({facts.eod_id}) after every document",
        "literal": f"special-token strings inside text are {literal}",
    }
