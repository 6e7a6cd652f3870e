"""Read held-out text: a prepared folder's validation split, files of documents, or plain text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from tst_megatron.data.manifest import FILE_NAME, load_manifest
from tst_megatron.data.text.documents import texts
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.verify.inspect import sample_documents
from tst_megatron.system.records import Damaged, read_text

PLAIN = (".txt", ".md", ".text")
MOST_DOCUMENTS = 2000
SEED = 1


def read_documents(path: Path) -> list[str]:
    """Return documents of held-out text.

    Args:
        path: a folder of `tst-megatron data prepare`, of which the validation split is read; a
            file of plain text, one document; or documents as `data prepare` reads them.

    Raises:
        ValueError: nothing can be read there, or it holds no document.
    """
    found = list(itertools.islice((each for each in _documents(path) if each.strip()), 0, None))
    if not found:
        raise ValueError(f"--text {path}: holds no document. Give held-out text")
    return found


def _documents(path: Path) -> Iterator[str]:
    if (path / FILE_NAME).is_file():
        manifest = load_manifest(path)
        tokenizer = load_tokenizer(manifest.tokenizer_path)
        reader = manifest.validation.reader()
        for sample in sample_documents(reader, tokenizer, MOST_DOCUMENTS, SEED):
            yield sample.text
    elif path.suffix in PLAIN:
        try:
            text = read_text(path)
        except Damaged as error:
            raise ValueError(f"--text {path}: {error}") from error
        if text is None:
            raise ValueError(f"--text {path}: no such file. Give held-out text")
        yield text
    else:
        yield from itertools.islice(texts([path]), MOST_DOCUMENTS)
