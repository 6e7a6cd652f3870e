"""JSONL to Megatron token files: parallel, the same for any number of workers, all or nothing.

The main process reads lines and writes tokens; workers parse, split and encode batches of lines
(`encode.py`). Everything is built in a folder beside the output and renamed once it is complete
(`prepared.py`).
"""

import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tst_megatron import __version__
from tst_megatron.data.encode import SPLITS, Encoded, Encoder, encode_batches
from tst_megatron.data.indexed import IndexedWriter
from tst_megatron.data.jsonl import check_inputs, line_batches
from tst_megatron.data.manifest import (
    Manifest,
    Split,
    file_sha256,
    load_manifest,
)
from tst_megatron.data.prepared import built_beside, finished, write_manifest
from tst_megatron.data.tokenizer import (
    Tokenizer,
    load_tokenizer,
    store_tokenizer,
    tokenizer_sha256,
)

__all__ = ["Manifest", "Split", "load_manifest", "prepare"]


def prepare(
    inputs: Sequence[Path],
    tokenizer: Path,
    output: Path,
    *,
    eod_token: str | None = None,
    special_tokens_in_text: bool = False,
    text_key: str = "text",
    held_out_fraction: float = 0.01,
    test_fraction: float = 0.0,
    workers: int | None = None,
    allow_empty_splits: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Tokenise JSONL files into a folder with training and held-out data and a manifest.

    The files do not depend on the number of workers, and a document's split (training, validation
    or test) depends on its text alone. A finished folder with the same inputs, tokenizer and
    settings is checked and returned with `reused` set. A run that was killed leaves
    `<output>.partial-*` behind; delete it.

    Args:
        inputs: .jsonl, .jsonl.gz or .jsonl.zst files, one JSON object per line, read in this order.
        tokenizer: SentencePiece .model file, or a folder with a tokenizer in Hugging Face format; a
            copy goes into the folder.
        output: folder to make; its parent is made too.
        eod_token: special token that ends documents, where it is not the tokenizer's EOS.
        special_tokens_in_text: text that spells a special token becomes its id; else it is text.
        text_key: key of the document's text in each object.
        held_out_fraction: share of documents (0-1, both excluded) that go to validation.
        test_fraction: share of documents that go to test, which is evaluated once, after the last
            step; 0 for no test split.
        workers: processes that encode; by default one per available core. More than 1 needs
            the calling script to have an `if __name__ == "__main__"` guard.
        allow_empty_splits: for a shard that `merge` joins to others: a split may have no document.
            Training refuses such a folder.
        console: where a progress bar is drawn; none when None.

    Raises:
        ValueError: a setting, an input file or a line is wrong, a split gets no document, or
            `output` holds something else.
        FileNotFoundError: an input or the tokenizer is missing.
    """
    _check_settings(inputs, held_out_fraction, test_fraction, workers)
    with tempfile.TemporaryDirectory() as beside:
        stored = store_tokenizer(tokenizer, Path(beside), eod_token=eod_token)
        loaded = load_tokenizer(stored, special_tokens_in_text=special_tokens_in_text)
    recipe = _recipe(inputs, tokenizer, text_key, held_out_fraction, test_fraction)
    recipe |= {"eod_token": eod_token, "special_tokens_in_text": special_tokens_in_text}
    output = output.absolute()
    there = finished(output, recipe)
    if there is not None:
        if not allow_empty_splits:
            _check_documents({n: split.documents for n, split in there.splits().items()}, recipe)
        return there
    output.parent.mkdir(parents=True, exist_ok=True)
    with built_beside(output) as folder:
        stored = store_tokenizer(tokenizer, folder, eod_token=eod_token)
        encoder = Encoder(loaded, text_key, held_out_fraction, test_fraction)
        with (
            _progress(console, inputs) as advance,
            closing(encode_batches(line_batches(inputs, advance), encoder, workers)) as encoded,
        ):
            _write(folder, recipe, loaded, stored.name, encoded, allow_empty_splits)
    return load_manifest(output)


def _check_settings(
    inputs: Sequence[Path], held_out_fraction: float, test_fraction: float, workers: int | None
) -> None:
    problems = []
    if not 0.0 < held_out_fraction < 1.0:
        problems.append(
            f"held_out_fraction {held_out_fraction}: must lie between 0 and 1, both excluded. Try "
            "0.01."
        )
    if not 0.0 <= test_fraction < 1.0 - held_out_fraction:
        problems.append(
            f"test_fraction {test_fraction}: must be 0 or more, and leave text to train on beside "
            f"held_out_fraction {held_out_fraction}. Try 0.01."
        )
    if workers is not None and workers < 1:
        problems.append(f"workers {workers}: must be at least 1. Leave it out to use all cores.")
    if problems:
        raise ValueError("\n".join(problems))
    check_inputs(inputs)


def _recipe(
    inputs: Sequence[Path],
    tokenizer: Path,
    text_key: str,
    held_out_fraction: float,
    test_fraction: float,
) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in inputs
        ],
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "text_key": text_key,
        "held_out_fraction": held_out_fraction,
        "test_fraction": test_fraction,
    }


@contextmanager
def _progress(console: Console | None, inputs: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the input bytes read since its last call."""
    if console is None:
        yield lambda num_bytes: None
        return
    with Progress(console=console) as progress:
        total = sum(path.stat().st_size for path in inputs)
        task = progress.add_task("tokenising", total=total)
        yield lambda num_bytes: progress.advance(task, num_bytes)


def _write(
    folder: Path,
    recipe: dict[str, Any],
    tokenizer: Tokenizer,
    tokenizer_name: str,
    encoded_batches: Iterator[Encoded],
    allow_empty_splits: bool,
) -> None:
    vocab_size = tokenizer.facts.vocab_size
    counts = np.zeros(vocab_size, dtype=np.int64)
    num_empty = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(IndexedWriter(folder / name, vocab_size=vocab_size))
            for name in SPLITS
            if name != "test" or recipe["test_fraction"]
        }
        for encoded in encoded_batches:
            num_empty += encoded.num_empty
            for name, writer in writers.items():
                writer.add_documents(encoded.tokens[name], encoded.lengths[name])
            counts += np.bincount(encoded.tokens["train"], minlength=vocab_size)
        if not allow_empty_splits:
            _check_documents({n: writer.num_documents for n, writer in writers.items()}, recipe)
        facts = {
            name: writer.finish(allow_empty=allow_empty_splits) for name, writer in writers.items()
        }
    write_manifest(
        folder,
        recipe=recipe,
        splits=facts,
        train_counts=counts,
        tokenizer=tokenizer.facts,
        tokenizer_name=tokenizer_name,
        empty_documents=num_empty,
        versions={
            "tst_megatron": __version__,
            "python": platform.python_version(),
            "sentencepiece": version("sentencepiece"),
            "tokenizers": version("tokenizers"),
            "transformers": version("transformers"),
            "numpy": version("numpy"),
        },
    )


def _check_documents(num_documents: dict[str, int], recipe: dict[str, Any]) -> None:
    if 0 in num_documents.values():
        raise ValueError(
            f"held_out_fraction {recipe['held_out_fraction']} and test_fraction "
            f"{recipe['test_fraction']}: give "
            f"{' and '.join(f'{number} {name}' for name, number in num_documents.items())} "
            "documents, each split needs at least one. Change the fractions or give more "
            "documents; a shard that is merged with others later may lack them (--shard)."
        )
