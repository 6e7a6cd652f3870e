"""Parse, split and encode batches of JSONL lines, in this process or in a pool of processes."""

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tst_megatron.data.jsonl import LineBatch, check_inputs, line_batches
from tst_megatron.data.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Encoder:
    """What a worker must know."""

    tokenizer: Tokenizer
    text_key: str
    held_out_fraction: float
    test_fraction: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """The documents of one batch: split name to array, in input order."""

    tokens: dict[str, npt.NDArray[np.int32]]
    lengths: dict[str, npt.NDArray[np.int32]]
    num_empty: int


def encode_batches(
    batches: Iterator[LineBatch], encoder: Encoder, workers: int | None
) -> Generator[Encoded]:
    """Yield the encoded batches in the order of the input, whatever the number of workers.

    Args:
        batches: read only a few batches ahead of what was taken.
        encoder: tokenizer and rules.
        workers: processes; None for one per available core, 1 to stay in this process.

    Raises:
        ValueError: a line is not a JSON object with the text; the first such line is named.
    """
    workers = workers or _num_cores()
    if workers == 1:
        for batch in batches:
            yield encode_batch(batch, encoder)
        return
    # Not forked: the caller may have threads (torch, rich), and a fork would copy their locks.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder,),
    )
    pending: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(_work, batch))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def encode_batch(batch: LineBatch, encoder: Encoder) -> Encoded:
    """Encode the documents of one batch; blank lines are skipped, empty texts counted.

    Raises:
        ValueError: a line is not a JSON object with the text.
    """
    texts: dict[str, list[str]] = {name: [] for name in SPLITS}
    num_empty = 0
    for number, line in enumerate(batch.lines, start=batch.first_line):
        if not line.strip():
            continue
        text = _text(line, encoder.text_key, f"{batch.file}, line {number}")
        if not text:
            num_empty += 1
            continue
        name = split_of(
            text,
            held_out_fraction=encoder.held_out_fraction,
            test_fraction=encoder.test_fraction,
        )
        texts[name].append(text)
    documents = {name: encoder.tokenizer.encode(texts[name]) for name in SPLITS}
    empty = np.empty(0, dtype=np.int32)
    return Encoded(
        tokens={name: np.concatenate([empty, *documents[name]]) for name in SPLITS},
        lengths={
            name: np.array([len(document) for document in documents[name]], dtype=np.int32)
            for name in SPLITS
        },
        num_empty=num_empty,
    )


def texts(inputs: Sequence[Path], *, text_key: str = "text") -> Iterator[str]:
    """Yield the text of every document, in order; blank lines are skipped.

    Raises:
        ValueError: a line is not a JSON object with the text; the first such line is named.
    """
    check_inputs(inputs)
    for batch in line_batches(inputs):
        for number, line in enumerate(batch.lines, start=batch.first_line):
            if line.strip():
                yield _text(line, text_key, f"{batch.file}, line {number}")


def split_of(text: str, *, held_out_fraction: float, test_fraction: float) -> str:
    """The split of a document; its text alone decides.

    Args:
        text: the whole document.
        held_out_fraction: share of documents (0-1) that go to validation.
        test_fraction: share of documents (0-1) that go to test; what validation holds does not
            depend on it.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < held_out_fraction:
        return "validation"
    return "test" if place < held_out_fraction + test_fraction else "train"


def _text(line: bytes, text_key: str, place: str) -> str:
    try:
        document = json.loads(line.decode())
    except ValueError as error:
        raise ValueError(
            f"{place}: not JSON in UTF-8 ({error}). Write one JSON object per line."
        ) from error
    if not isinstance(document, dict) or text_key not in document:
        found = f"keys {sorted(document)[:10]}" if isinstance(document, dict) else "no object"
        raise ValueError(
            f"{place}: {found}, a JSON object with the key {text_key!r} is needed. Name the text's "
            "key with text_key, or leave the line out."
        )
    text = document[text_key]
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: {text_key!r} is {type(text).__name__}, text must be a string. Convert it, "
            "or leave the line out."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place}: {text_key!r} holds half a surrogate pair ({error}), text must have a UTF-8 "
            "form. Repair or remove that character."
        ) from error
    return text


_worker: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker
    # One thread each: the processes are as many as the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = encoder


def _work(batch: LineBatch) -> Encoded:
    assert _worker is not None
    return encode_batch(batch, _worker)


def _num_cores() -> int:
    # A batch job may use fewer cores than the machine has; macOS cannot say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
