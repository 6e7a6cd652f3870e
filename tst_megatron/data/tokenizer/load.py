"""Load a tokenizer from disk, whichever library it belongs to, or store it in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.files import HUGGING_FACE_FOLDER, SENTENCEPIECE_FILE, copy_files
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face, name_eos
from tst_megatron.data.tokenizer.sentencepiece import SentencePieceTokenizer


def load_tokenizer(source: Path, *, special_tokens_in_text: bool = False) -> Tokenizer:
    """Load a SentencePiece .model file or a folder in Hugging Face format.

    Args:
        source: the file or the folder (also one that holds a model beside the tokenizer).
        special_tokens_in_text: text that spells a special token becomes its id.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a tokenizer, or one by which documents cannot be told apart.
    """
    if source.is_dir():
        return load_hugging_face(source, special_tokens_in_text=special_tokens_in_text)
    if special_tokens_in_text:
        raise ValueError(
            f"{source}: a SentencePiece model reads special tokens in text as text, always. Leave "
            "--special-tokens-in-text out, or use the tokenizer's Hugging Face form."
        )
    return SentencePieceTokenizer.load(source)


def store_tokenizer(source: Path, folder: Path, *, eod_token: str | None = None) -> Path:
    """Copy a tokenizer into a folder, under the name that prepared folders and runs give it.

    Args:
        source: a SentencePiece .model file or a folder in Hugging Face format.
        folder: exists.
        eod_token: the special token that ends documents, where it is not the tokenizer's EOS; the
            copy has it as EOS, so that evaluation and export end texts with it too.

    Returns:
        The copy.

    Raises:
        ValueError: ``eod_token`` is none of the tokenizer's added tokens, or given with a
            SentencePiece model.
    """
    if not source.is_dir():
        if eod_token is not None:
            raise ValueError(
                f"--eod-token {eod_token!r}: documents of a SentencePiece model end with its EOS. "
                "Leave it out."
            )
        return Path(shutil.copyfile(source, folder / SENTENCEPIECE_FILE))
    target = folder / HUGGING_FACE_FOLDER
    target.mkdir()
    copy_files(source, target)
    if eod_token is not None:
        name_eos(target, eod_token)
    return target
