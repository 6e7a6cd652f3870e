"""Prepare a text for the recipes: documents, a tokenizer of the wanted size, token files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from evidence.plan import WORK, PlanError
from evidence.text import KINDS, write_text
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.split import split_of
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.system.files import write_beside
from tst_megatron.system.records import read_json

HELD_OUT_FRACTION = 0.02
MOST_BYTES_FOR_TOKENIZER = 16_000_000
MIXED, FEW, LIBRARY, GIVEN = "mixed", "few", "library", "given"
"""Beside the kinds of ``text.py``: all of them, few documents of ``python`` with all that it holds
out, Python's standard library alone, and a person's own."""
FEW_BYTES = 7_200_000
"""To train on: about 4.1M tokens of a vocabulary of 512."""


def prepared(text: str, console: Console) -> Path:
    """Return the folder of a prepared text; what is already there is used.

    Args:
        text: kind and vocabulary, such as ``python-512``.
        console: where it is said.

    Raises:
        PlanError: the text is one that a person prepares, and is not there.
    """
    kind, _, vocabulary = text.rpartition("-")
    folder = WORK / "text" / text
    if (folder / "manifest.json").exists():
        return folder
    if kind == GIVEN:
        raise PlanError(
            f"{folder}: no text was prepared there, and for a model of this size the packages of "
            f"the environment hold too little. Prepare one with a vocabulary of {vocabulary}: "
            f"tst-megatron data prepare TEXTS --tokenizer FILE --output {folder} "
            "--held-out-fraction 0.01"
        )
    corpus = _corpus(kind, console)
    if kind == FEW:
        # The tokenizer of all: then losses on the same held-out documents can be compared.
        prepared(f"python-{vocabulary}", console)
        tokenizer = WORK / "text" / f"python-{vocabulary}.model"
    else:
        tokenizer = WORK / "text" / f"{text}.model"
        train_sentencepiece(
            texts([corpus]),
            tokenizer,
            vocab_size=int(vocabulary),
            max_text_bytes=MOST_BYTES_FOR_TOKENIZER,
        )
    manifest = prepare([corpus], tokenizer, folder, held_out_fraction=HELD_OUT_FRACTION, workers=2)
    console.print(
        f"{folder}: {manifest.train.tokens:,} tokens to train on, "
        f"{manifest.validation.tokens:,} held out",
        highlight=False,
        soft_wrap=True,
    )
    return folder


def _corpus(kind: str, console: Console) -> Path:
    path = WORK / "text" / f"{kind}.jsonl"
    facts = path.with_suffix(".json")
    if facts.exists():
        return path
    if kind == MIXED:
        parts = [_corpus(each, console) for each in KINDS]
        with path.open("wb") as file, ExitStack() as stack:
            file.writelines(_in_turns([stack.enter_context(part.open("rb")) for part in parts]))
        found = {"kind": MIXED, "parts": [read_json(each.with_suffix(".json")) for each in parts]}
    elif kind == FEW:
        # It makes the folder, too.
        python = _corpus("python", console)
        with python.open("rb") as all_of_them, path.open("wb") as file:
            file.writelines(_few(all_of_them))
        found = {"kind": FEW, "parts": [read_json(python.with_suffix(".json"))]}
    elif kind == LIBRARY:
        found = asdict(write_standard_library_corpus(path))
        found |= {"kind": LIBRARY, "path": path.name}
    else:
        console.print(f"collecting {kind} from the installed packages", highlight=False)
        found = asdict(write_text(kind, path))
    write_beside(facts, json.dumps(found, indent=1) + "\n")
    return path


def _in_turns(files: list) -> Iterator[bytes]:
    """Yield documents so that all kinds have equally many bytes, until one kind has no more.

    A file is taken once: a docstring that is trained on may not be held out with its source.
    """
    sizes = [0] * len(files)
    taken = set()
    while True:
        number = sizes.index(min(sizes))
        line = files[number].readline()
        if not line:
            return
        if (name := json.loads(line)["id"]) not in taken:
            taken.add(name)
            sizes[number] += len(line)
            yield line


def _few(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield all documents that are held out, and the first ``FEW_BYTES`` of the others."""
    size = 0
    for line in lines:
        text = json.loads(line)["text"]
        if split_of(text, held_out_fraction=HELD_OUT_FRACTION, test_fraction=0) == "train":
            size += len(text.encode())
            if size > FEW_BYTES:
                continue
        yield line
