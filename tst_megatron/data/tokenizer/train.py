"""Train a SentencePiece tokenizer that gives every text back.

BPE, not unigram: its merges are whole numbers in a fixed order, so that the Hugging Face form can
be proven to give the same ids. A unigram model decides by sums of float32 scores, which
`tokenizers` adds up in float64, and there "</s>" in text becomes the special id.
"""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece

UNKNOWN_ID, BOS_ID, EOS_ID = 0, 1, 2

# SentencePiece drops longer sentences without an error; ours are cut below it.
_CHUNK_BYTES = 4096
_SMALLEST_VOCABULARY = 3 + 256 + 2


def train_sentencepiece(
    texts: Iterable[str],
    model_file: Path,
    *,
    vocab_size: int,
    max_text_bytes: int = 64_000_000,
    character_coverage: float = 0.9995,
) -> SentencePieceProcessor:
    """Train a BPE tokenizer that gives text back: byte fallback, no normalisation, all spaces.

    The same texts in the same order give the same file, byte for byte. One exception to the round
    trip: U+2581, SentencePiece's own sign for a space, comes back as a space.

    Args:
        texts: documents of any length; shuffle them when they hold more than `max_text_bytes`.
        model_file: the .model file; written beside and renamed.
        vocab_size: number of ids, the 3 special tokens and the 256 bytes included.
        max_text_bytes: UTF-8 bytes read from `texts`; the rest is not looked at.
        character_coverage: share of characters (0-1) that get an own id; rarer ones are spelled in
            bytes.

    Returns:
        The trained tokenizer, loaded from `model_file`.

    Raises:
        ValueError: the vocabulary is too small for the special tokens, or too large for the text;
            there is no text; or a text holds half a surrogate pair.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size {vocab_size}: at least {_SMALLEST_VOCABULARY} ids are needed (3 special "
            "tokens, 256 bytes, space and newline). Use a larger vocabulary."
        )
    # Read before training: SentencePiece would wrap errors of the iterator in its own.
    chunks = list(_chunks(texts, max_text_bytes))
    if not chunks:
        raise ValueError(
            "texts: no text to train on. Give at least one document that is not empty."
        )
    model = _train(chunks, vocab_size=vocab_size, character_coverage=character_coverage)
    _write(model, model_file)
    return load_sentencepiece(model_file)


def _train(chunks: list[str], *, vocab_size: int, character_coverage: float) -> bytes:
    """Return the model that SentencePiece makes of these texts.

    Raises:
        ValueError: the vocabulary is too large for the text.
    """
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            required_chars="\u2581\n",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2 * _CHUNK_BYTES,
            num_threads=1,
            minloglevel=2,
            unk_id=UNKNOWN_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocab_size {vocab_size}: SentencePiece cannot train it on this text ({error}). Give "
            "more text, or a vocabulary size the text allows."
        ) from error
    return model.getvalue()


def _write(model: bytes, model_file: Path) -> None:
    """Write the file beside its name and rename it, so that no half of it is ever seen."""
    model_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{model_file.name}.", dir=model_file.parent
    ) as beside:
        temporary = Path(beside) / model_file.name
        with temporary.open("wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(model_file)


def _chunks(texts: Iterable[str], max_text_bytes: int) -> Iterator[str]:
    """Cut texts at line ends, so that newlines and indentation stay together and can be learned."""
    num_bytes = 0
    for number, text in enumerate(texts):
        try:
            num_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number}: holds half a surrogate pair, which has no UTF-8 form ({error}). "
                "Repair or remove that character."
            ) from error
        chunk = ""
        for line in text.splitlines(keepends=True):
            if chunk and len((chunk + line).encode()) > _CHUNK_BYTES:
                yield chunk
                chunk = ""
            # A character has at most 4 bytes.
            *full, line = [
                line[i : i + _CHUNK_BYTES // 4] for i in range(0, len(line), _CHUNK_BYTES // 4)
            ]
            yield from full
            chunk += line
        if chunk:
            yield chunk
        if num_bytes >= max_text_bytes:
            return
