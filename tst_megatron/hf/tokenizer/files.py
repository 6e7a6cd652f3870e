"""The tokenizer of a checkpoint: where its files are, what a model must know of it, and copying it.

A run keeps its tokenizer beside its checkpoints (``tokenizer.model``), an imported checkpoint has
the files of its origin there (``tokenizer/``), and both may have moved since.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.tokenizer.load import HUGGING_FACE_FILES, copy_files
from tst_megatron.system.records import Damaged, read_json, read_yaml
from tst_megatron.training.run.folder import RESOLVED
from tst_megatron.training.run.tokenizer import is_tokenizer, places_of_tokenizers

GENERATION = "generation_config.json"
IMPORTED = "imported_tokenizer_sha256"
"""Name of the argument in which an imported checkpoint keeps the hash of its tokenizer."""


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
    note: str | None = None
    """What the owner of the model should know of it."""


NOT_COMPARED = (
    "the tokenizer could not be compared with the one that the model was trained with: neither the "
    "checkpoint nor a run around it says which that was"
)
NO_TOKENIZER = TokenizerFiles(source=None, description="none written, as asked")


def find_tokenizer(
    args: argparse.Namespace, beside: Path, given: Path | None = None
) -> TokenizerFiles:
    """The tokenizer that a model was trained with.

    Args:
        args: Megatron's arguments as saved in its checkpoint.
        beside: the folder of its checkpoints.
        given: where it is, if not where the checkpoint says. It is taken whatever it is.

    Raises:
        ValueError: it is not on this machine, or what is in its place is another one.
    """
    named = Path(args.tokenizer_model) if args.tokenizer_model else None
    places = (given,) if given else (*places_of_tokenizers(beside), named)
    found = list(dict.fromkeys(each for each in places if each and _is_tokenizer(each)))
    sha256 = sha256_of_tokenizer(args, beside)
    same = [place for place in found if sha256 is None or is_tokenizer(place, sha256)]
    if found and not same and not given:
        listed = " and ".join(map(str, found))
        raise ValueError(
            f"tokenizer: {listed} {'is' if len(found) == 1 else 'are'} not what the model was "
            f"trained with (SHA-256 {sha256}). Bring back the file or folder from the prepared "
            "text, name one with --tokenizer, or export the weights alone with --no-tokenizer."
        )
    if found:
        place = (same or found)[0]
        tokenizer = _sentencepiece(place) if place.is_file() else _hugging_face(place)
        note = None if same else f"warning: {place} is not what the model was trained with"
        return replace(tokenizer, note=note if sha256 else NOT_COMPARED)
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


def _is_tokenizer(place: Path) -> bool:
    return place.is_file() or any((place / name).is_file() for name in HUGGING_FACE_FILES)


def sha256_of_tokenizer(args: argparse.Namespace, beside: Path) -> str | None:
    """The hash (``tokenizer_sha256``) of what a model was trained with, if that is known here.

    Args:
        args: Megatron's arguments as saved in its checkpoint, which know it since tokens are read
            from a stream.
        beside: the folder of its checkpoints. The run around it knows its text, which may still be
            where it was.
    """
    known = getattr(args, "tst", {}).get("stream", {}).get("tokenizer")
    known = known or getattr(args, IMPORTED, None)
    if known:
        return str(known)
    try:
        text = next(iter((read_yaml(beside.parent / RESOLVED) or {})["data"]))
        return load_manifest(Path(text)).tokenizer.sha256
    except (ValueError, OSError, KeyError, TypeError, StopIteration):
        return None


def write_tokenizer(tokenizer: TokenizerFiles, folder: Path) -> None:
    """Write a tokenizer into a folder as transformers reads it, and prove that the ids are equal.

    Files in Hugging Face format are copied byte for byte.

    Args:
        tokenizer: as ``find_tokenizer`` found it.
        folder: holds the model's config.json already, which has a say in how the files are read.

    Raises:
        ValueError: it is none for documents (``load_hugging_face``), or has no exact form there.
        RuntimeError: the ids differ; the message shows the first text.
    """
    if tokenizer.source is None:
        return
    if tokenizer.source.is_file():
        from tst_megatron.hf.tokenizer.sentencepiece import export_tokenizer

        export_tokenizer(tokenizer.source, folder)
        return
    copy_files(tokenizer.source, folder)
    _prove(tokenizer.source, folder)


def _prove(source: Path, folder: Path) -> None:
    """Compare what transformers makes of texts with the documents of the original."""
    from transformers import AutoTokenizer

    from tst_megatron.data.tokenizer.hugging_face import load_hugging_face

    original = load_hugging_face(source)
    copy = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in _probe_texts(copy):
        expected = original.encode([text])[0].tolist()
        if not original.template_adds_eod:
            expected.pop()
        # As documents are read: text that spells a special token is text.
        actual = copy(text, split_special_tokens=True)["input_ids"]
        if actual != expected:
            raise RuntimeError(
                f"exported tokenizer: text {text[:200]!r} gives ids {actual[:50]}, the tokenizer "
                f"that the model was trained with gives {expected[:50]}. Beside this config.json "
                f"transformers reads it as {type(copy).__name__}. Say how to read it in a copy of "
                f'{source} ("tokenizer_class": "PreTrainedTokenizerFast" in its '
                "tokenizer_config.json reads tokenizer.json as it is), and name the copy with "
                "--tokenizer."
            )


def _probe_texts(tokenizer: Any) -> Iterator[str]:
    from tst_megatron.hf.tokenizer.sentencepiece import PROBES

    yield from PROBES
    for token in tokenizer.get_added_vocab():
        yield f"a {token} b{token}"


def _sentencepiece(source: Path) -> TokenizerFiles:
    from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece

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
        try:
            said = read_json(generation) or {}
        except Damaged as error:
            raise ValueError(f"{generation}: {error}. Bring it back, or delete it") from error
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
