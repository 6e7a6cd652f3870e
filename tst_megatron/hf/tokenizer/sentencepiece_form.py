"""Check that a SentencePiece model has an exact Hugging Face form, and find its merges there.

SentencePiece merges, again and again, the two neighbours whose joined piece has the best score, the
leftmost such pair first. `tokenizers` follows a list of pairs instead. The two agree on every text,
for this reason: symbols that stand side by side once all better merges are done were merged without
a look at their neighbours, so the text of a piece is then cut in one way wherever it occurs, and
the pair at that cut is the only one that ever forms the piece. `exact_merges` lists that pair for
each piece, and refuses a model where better merges do not end in a pair.

No transformers and no torch: `check` and `data prepare` ask before anything is made.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Types of pieces, in SentencePiece's numbers."""


def read_model(model_file: Path) -> Any:
    """The model's own description, a protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        model_file.read_bytes()
    )


def exact_merges(model: Any) -> list[tuple[str, str]]:
    """The pairs by which `tokenizers` gives a model's ids on every text, best piece first.

    Args:
        model: as ``read_model`` gives it.

    Raises:
        ValueError: the model has no exact Hugging Face form, with every reason.
    """
    if found := _settings_without_a_form(model):
        raise ValueError("; ".join(found))
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    return _merges(scores)


def _settings_without_a_form(model: Any) -> list[str]:
    problems = []
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        problems.append("its type is not BPE")
    if not model.trainer_spec.byte_fallback:
        problems.append("it has no byte fallback")
    if model.trainer_spec.treat_whitespace_as_suffix:
        problems.append("it puts spaces behind words")
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or model.denormalizer_spec.precompiled_charsmap:
        problems.append(f"it normalises text ({spec.name})")
    if spec.add_dummy_prefix:
        problems.append("it adds a space in front of text")
    if spec.remove_extra_whitespaces or not spec.escape_whitespaces:
        problems.append("it changes spaces")
    if any(piece.type not in (NORMAL, UNKNOWN, CONTROL, BYTE) for piece in model.pieces):
        problems.append("it has user-defined or unused pieces")
    if any(len(piece.piece) == 1 for piece in model.pieces if piece.type != NORMAL):
        problems.append("a special token is a single character")
    return problems


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """List the one pair that forms each piece, best piece first.

    Raises:
        ValueError: no list of pairs gives SentencePiece's ids on every text.
    """
    if len(set(scores.values())) < len(scores):
        raise ValueError("two pieces have the same score")
    missing = sorted({character for piece in scores for character in piece} - scores.keys())
    if missing:
        raise ValueError(f"characters {missing[:5]} are inside pieces but are no pieces themselves")
    merges = []
    for piece in sorted((piece for piece in scores if len(piece) > 1), key=lambda p: -scores[p]):
        parts = _segment(piece, scores, above=scores[piece])
        if len(parts) != 2:
            raise ValueError(f"piece {piece!r} is not joined from two pieces with better scores")
        merges.append((parts[0], parts[1]))
    return merges


def _segment(text: str, scores: dict[str, float], *, above: float) -> list[str]:
    """Merge as SentencePiece does, with the pieces whose score is above a bound."""
    symbols = list(text)
    while True:
        candidates = [scores.get(left + right, -math.inf) for left, right in pairwise(symbols)]
        best = max(candidates, default=-math.inf)
        if best <= above:
            return symbols
        left = candidates.index(best)
        symbols[left : left + 2] = [symbols[left] + symbols[left + 1]]
