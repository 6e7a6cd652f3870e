"""The tokenizer of a checkpoint: where its files are, what a model must know of it, and copying it.

A run keeps its tokenizer beside its checkpoints (``tokenizer.model``), an imported checkpoint has
the files of its origin there (``tokenizer/``), and both may have moved since.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.data.tokenizer import (
    HUGGING_FACE_FILES,
    HUGGING_FACE_FOLDER,
    SENTENCEPIECE_FILE,
    copy_files,
)

GENERATION = "generation_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFiles:
    """A tokenizer as far as its files are on this machine."""

    source: Path | None
    """A SentencePiece model, a folder in Hugging Face format, or None for none."""
    description: str
    vocab_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    generation: Path | None = None
    """The generation_config.json that an imported model came with."""


NO_TOKENIZER = TokenizerFiles(source=None, description="none written, as asked")


def find_tokenizer(
    args: argparse.Namespace, beside: Path, given: Path | None = None
) -> TokenizerFiles:
    """The tokenizer that a model was trained with.

    Args:
        args: Megatron's arguments as saved in its checkpoint.
        beside: the folder of its checkpoints.
        given: where it is, if not where the checkpoint says.

    Raises:
        ValueError: it is not on this machine.
    """
    named = Path(args.tokenizer_model) if args.tokenizer_model else None
    places = (
        (given,) if given else (beside / SENTENCEPIECE_FILE, beside / HUGGING_FACE_FOLDER, named)
    )
    for place in filter(None, places):
        if place.is_file():
            return _sentencepiece(place)
        if place.is_dir() and any((place / name).is_file() for name in HUGGING_FACE_FILES):
            return _hugging_face(place)
    if given:
        where = f"{given} is neither a SentencePiece model nor a folder with a tokenizer"
    elif named:
        where = f"{args.tokenizer_type} {named} is not on this machine"
    else:
        where = f"{args.tokenizer_type} has no files"
    raise ValueError(
        f"tokenizer: {where}. Name its file or folder with --tokenizer, or export the weights "
        "alone with --no-tokenizer."
    )


def write_tokenizer(tokenizer: TokenizerFiles, folder: Path) -> None:
    """Write a tokenizer into a folder as transformers reads it.

    Args:
        tokenizer: as ``find_tokenizer`` found it.
        folder: exists.
    """
    if tokenizer.source is None:
        return
    if tokenizer.source.is_file():
        from tst_megatron.hf.tokenizer import export_tokenizer

        export_tokenizer(tokenizer.source, folder)
        return
    copy_files(tokenizer.source, folder)


def _sentencepiece(source: Path) -> TokenizerFiles:
    from tst_megatron.data.sentencepiece_tokenizer import load_sentencepiece

    processor = load_sentencepiece(source)
    return TokenizerFiles(
        source=source,
        description=f"SentencePiece, from {source}",
        vocab_size=processor.vocab_size(),
        bos_token_id=_id_or_none(processor.bos_id()),
        eos_token_id=_id_or_none(processor.eos_id()),
    )


def _hugging_face(source: Path) -> TokenizerFiles:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    generation = source / GENERATION if (source / GENERATION).is_file() else None
    if generation:
        # A model may end at more tokens than its tokenizer says.
        said = json.loads(generation.read_text())
        ids = {name: said.get(name, token_id) for name, token_id in ids.items()}
    return TokenizerFiles(
        source=source,
        description=f"Hugging Face, from {source}",
        vocab_size=len(tokenizer),
        generation=generation,
        **ids,
    )


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
