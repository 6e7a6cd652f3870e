"""The texts, the tokenizers and the ways that measure_prepare.py compares."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import zstandard
from pyarrow import parquet
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.fast import fast_tokenizer
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.system.packages import package_version

BASELINE = "plain encoding"
NUM_FILES = 4
"""Of each format: packed files are read by one worker each, so several are needed for two."""
FEW = 256
"""Documents of the short run, at most a quarter of all: with so many in as many files as the long
run has, `--fast` compares as large a sample before it begins."""
DOCUMENTS_PER_CALL = 64
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The same documents in the forms that the ways read."""

    documents: Sequence[str]
    folder: Path
    """With .jsonl.zst and .parquet files."""
    lines: Path
    """One .jsonl file, which is what Megatron's tool reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one run took, after what the short run took."""

    seconds: float
    cpu_seconds: float
    """Of all its processes."""
    short_seconds: float
    """Of the short run."""


@dataclass(kw_only=True, slots=True)
class Way:
    """One way to tokenise a corpus."""

    name: str
    workers: int
    run: Callable[[Corpus], int]
    """Gives the number of tokens."""
    num_tokens: int = 0
    """Of a long run, after those of the short one."""
    readings: list[Reading] = field(default_factory=list)


def python_sources(folder: Path, num_bytes: int) -> list[str]:
    """Sources of the standard library and, if they do not suffice, of installed packages."""
    found: list[str] = []
    for place in ("stdlib", "purelib"):
        path = folder / f"{place}.jsonl"
        write_standard_library_corpus(path, library=Path(sysconfig.get_paths()[place]))
        found += texts([path])
        path.unlink()
        if sum(len(text.encode()) for text in found) >= num_bytes:
            break
    random.Random(1).shuffle(found)
    total, number = 0, 0
    while number < len(found) and total < num_bytes:
        total += len(found[number].encode())
        number += 1
    return found[:number]


def write_corpus(documents: Sequence[str], folder: Path) -> Corpus:
    (folder / "files").mkdir(parents=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    for number in range(NUM_FILES):
        packed = zstandard.compress("".join(lines[number :: 2 * NUM_FILES]).encode())
        (folder / "files" / f"{number}.jsonl.zst").write_bytes(packed)
        rows = pa.table({"text": documents[NUM_FILES + number :: 2 * NUM_FILES]})
        parquet.write_table(rows, folder / "files" / f"{number}.parquet")
    (folder / "all.jsonl").write_text("".join(lines), encoding="utf-8")
    return Corpus(documents=documents, folder=folder / "files", lines=folder / "all.jsonl")


def train_bpe(documents: Iterable[str], folder: Path, vocab_size: int) -> Path:
    """A tokenizer of Llama 3's kind: its split, byte-level BPE, BOS by template."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = Backend(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos
    ).save_pretrained(folder)
    return folder


def train_tokenizers(
    documents: Sequence[str], folder: Path, options: argparse.Namespace
) -> dict[str, Path]:
    """The tokenizers by kind."""
    found = {"byte-level BPE": train_bpe(documents, folder / "bpe", options.vocab_size)}
    if not options.no_sentencepiece:
        model = found["SentencePiece"] = folder / "sp.model"
        train_sentencepiece(documents, model, vocab_size=8000, max_text_bytes=8_000_000)
    return found


def ways(tokenizer: Path, options: argparse.Namespace) -> list[Way]:
    loaded = load_tokenizer(tokenizer)
    is_bpe = isinstance(loaded, HuggingFaceTokenizer)
    plain = plain_bpe if is_bpe else plain_sentencepiece
    found = [Way(name=BASELINE, workers=1, run=partial(plain, tokenizer))]
    has_fast = is_bpe and package_version("gigatoken") is not None
    for fast in (False, True) if has_fast else (False,):
        for workers in (1, 2):
            name = f"data prepare{' --fast' * fast}, {_workers(workers)}"
            run = partial(data_prepare, tokenizer, workers, fast)
            found.append(Way(name=name, workers=workers, run=run))
    if has_fast:
        run = partial(fast_encoding, tokenizer)
        found.append(Way(name="fast encoder alone", workers=1, run=run))
    if options.megatron_tool:
        kind = "HuggingFaceTokenizer" if is_bpe else "SentencePieceTokenizer"
        for workers in (1, 2):
            run = partial(megatron_tool, options.megatron_tool, kind, tokenizer, workers)
            name = f"Megatron's tool, {_workers(workers)}"
            found.append(Way(name=name, workers=workers, run=run))
    return [way for way in found if way.name in (options.only or [way.name]) + [BASELINE]]


def plain_bpe(tokenizer: Path, corpus: Corpus) -> int:
    """`encode_batch_fast` and the ids as Python lists: no less gives tokens."""
    backend = Backend.from_file(str(tokenizer / "tokenizer.json"))
    backend.encode_special_tokens = True
    num_tokens = 0
    for batch in batches(corpus.documents):
        encoded = backend.encode_batch_fast(batch, add_special_tokens=True)
        # One EOD each.
        num_tokens += sum(len(each.ids) + 1 for each in encoded)
    return num_tokens


def plain_sentencepiece(tokenizer: Path, corpus: Corpus) -> int:
    processor = SentencePieceProcessor(model_file=str(tokenizer))
    return sum(
        len(ids) + 1
        for batch in batches(corpus.documents)
        for ids in processor.encode(batch, num_threads=1)
    )


def fast_encoding(tokenizer: Path, corpus: Corpus) -> int:
    fast = fast_tokenizer(load_tokenizer(tokenizer), corpus.documents[:8])
    return sum(len(ids) for batch in batches(corpus.documents) for ids in fast.encode(batch))


def data_prepare(tokenizer: Path, workers: int, fast: bool, corpus: Corpus) -> int:
    with tempfile.TemporaryDirectory() as name:
        manifest = prepare(
            [corpus.folder],
            tokenizer,
            Path(name) / "prepared",
            workers=workers,
            fast=fast,
            allow_empty_splits=True,
        )
    return sum(split.tokens for split in manifest.splits().values())


def megatron_tool(tool: Path, kind: str, tokenizer: Path, workers: int, corpus: Corpus) -> int:
    with tempfile.TemporaryDirectory() as name:
        prefix = Path(name) / "megatron"
        command = [sys.executable, str(tool), "--input", str(corpus.lines), "--append-eod"]
        command += ["--output-prefix", str(prefix), "--workers", str(workers)]
        command += ["--tokenizer-type", kind, "--tokenizer-model", str(tokenizer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
        return IndexedReader(prefix.with_name("megatron_text_document")).num_tokens


def batches(documents: Sequence[str]) -> Iterable[list[str]]:
    for first in range(0, len(documents), DOCUMENTS_PER_CALL):
        yield list(documents[first : first + DOCUMENTS_PER_CALL])


def _workers(number: int) -> str:
    return f"{number} worker{'s' * (number > 1)}"
