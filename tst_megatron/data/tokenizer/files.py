"""Name, hash and copy the files of a tokenizer on disk.

No tokenizer library is imported here, nor NumPy: `tst-megatron status` looks at the tokenizer of a
run, and must answer at once.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tst_megatron.system.files import file_sha256

SENTENCEPIECE_FILE = "tokenizer.model"
HUGGING_FACE_FOLDER = "tokenizer"
"""Names under which a prepared folder and a run keep their tokenizer."""

HUGGING_FACE_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that a tokenizer in Hugging Face format may consist of."""
FILES_ALONG = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
    "spm_char.model",
    "dict.txt",
    "emoji.json",
    "byte_maps.json",
    "entity_vocab.json",
)
"""Files that transformers may write beside these, and that make no ids beside a tokenizer.json."""
TEMPLATES_ALONG = "additional_chat_templates"
"""A folder of chat templates beside the first."""


def copy_files(source: Path, target: Path) -> list[str]:
    """Copy the files of a tokenizer in Hugging Face format; returns their names.

    Its hash (``tokenizer_sha256``) is of what makes ids: without the files that only go along.
    """
    names = [name for name in HUGGING_FACE_FILES if (source / name).is_file()]
    if names:
        names += [name for name in FILES_ALONG if (source / name).is_file()]
        templates = sorted((source / TEMPLATES_ALONG).glob("*.jinja"))
        names += [f"{TEMPLATES_ALONG}/{path.name}" for path in templates if path.is_file()]
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names


def tokenizer_sha256(path: Path) -> str:
    """Return the SHA-256 of a tokenizer's file, or of the names and sums of a folder's files.

    Raises:
        FileNotFoundError: neither exists.
    """
    if not path.is_dir():
        return file_sha256(path)
    names = [name for name in HUGGING_FACE_FILES if (path / name).is_file()]
    if not names:
        raise FileNotFoundError(f"{path}: no file of a Hugging Face tokenizer is there.")
    lines = "".join(f"{file_sha256(path / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()
