"""Reuse a prepared folder if it is finished; else build it beside its name and rename it.

`prepare` and `merge` write the same folders, and share here what must be the same in both.
"""

import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron import __version__
from tst_megatron.data.manifest import (
    FILE_NAME,
    Contents,
    LeftOut,
    Manifest,
    load_manifest,
    manifest_json,
)
from tst_megatron.data.text.inputs import Shard
from tst_megatron.data.tokenizer.facts import TokenizerFacts
from tst_megatron.data.tokenizer.round_trip import RoundTrip
from tst_megatron.data.tokens.counts import entropy_nats
from tst_megatron.data.tokens.writer import IndexedFacts
from tst_megatron.data.verify.recorded_files import verify_files
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.processes.lock import held

REJECTED_NAME = "rejected.jsonl"
"""Name of the list of lines and files that held no document, if there were some."""
MARK_NAME = "unfinished"
"""Name of an empty file that says that the folder around it may be deleted."""
FOLDER_NAME = "joined"
"""Name of the folder that becomes the output, in a folder with that mark."""


def output_problems(output: Path, recipe: Mapping[str, Any]) -> list[str]:
    """List why a folder of this recipe cannot get this name.

    The name may belong to a finished folder of the same recipe.

    Args:
        output: folder to make.
        recipe: what it would be made from; further keys of an existing folder are allowed.
    """
    if is_free(output):
        return []
    if not (output / FILE_NAME).is_file():
        return [
            f"{output}: exists and is not a prepared folder (no {FILE_NAME}). Give another output "
            "folder, or delete this one."
        ]
    try:
        there = load_manifest(output).recipe
    except ValueError as error:
        return [str(error)]
    differences = [
        _difference(key, there.get(key), value)
        for key, value in recipe.items()
        if there.get(key) != value
    ]
    if not differences:
        return []
    return [
        f"{output}: was prepared differently; {'; '.join(differences)}. Give another output "
        "folder, or delete this one."
    ]


def finished(output: Path, recipe: Mapping[str, Any]) -> Manifest | None:
    """Return the finished folder of this recipe with every file checked; None if none exists.

    Raises:
        ValueError: something else has the name, or a file is damaged.
    """
    if problems := output_problems(output, recipe):
        raise ValueError("\n".join(problems))
    if is_free(output):
        return None
    manifest = load_manifest(output)
    verify_files(manifest)
    return replace(manifest, reused=True)


def unfinished_problems(output: Path) -> list[str]:
    """List why the folder beside an output, that `built_beside` uses, cannot be deleted first."""
    partial = _partial(output)
    if is_free(partial) or (partial / MARK_NAME).is_file():
        return []
    return [
        f"{partial}: exists and is no unfinished folder of a merge (no {MARK_NAME}). Move it away, "
        "or give another output folder."
    ]


def delete_unfinished(output: Path) -> None:
    """Delete what a killed run left beside its output, if it is that."""
    partial = _partial(output)
    if (partial / MARK_NAME).is_file():
        # The mark last, so that a deletion that is cut short can be done again.
        shutil.rmtree(partial / FOLDER_NAME, ignore_errors=True)
        if not (partial / FOLDER_NAME).exists():
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def built_beside(output: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `output` when the block ends, and vanishes if it fails.

    It is made in `<output>.partial`, whose name is the same in every run: what a killed run left
    there may be as large as the output, and is deleted.

    Args:
        output: absolute; does not exist, or is empty. Its parent exists.

    Raises:
        ValueError: something else has that name, or another merge is at work there.
    """
    if problems := unfinished_problems(output):
        raise ValueError("\n".join(problems))
    partial = _partial(output)
    partial.mkdir(exist_ok=True)
    (partial / MARK_NAME).touch()
    with held(partial, seconds=0):
        try:
            with folder_appearing_whole(output, partial / FOLDER_NAME) as folder:
                yield folder
        finally:
            delete_unfinished(output)


def write_manifest(
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    splits: Mapping[str, IndexedFacts],
    train_counts: npt.NDArray[np.int64],
    tokenizer: TokenizerFacts,
    tokenizer_name: str,
    left_out: LeftOut,
    contents: Contents | None,
    versions: Mapping[str, str],
    dtype: str | None = None,
) -> None:
    """Write manifest.json, the last file of a folder.

    Args:
        folder: that is being built.
        recipe: as in `manifest_json`, like all that is not said here.
        splits: what the writers returned.
        train_counts: [vocabulary size] how often each token occurs in the training split.
        tokenizer: that made the tokens.
        tokenizer_name: of its copy in the folder.
        left_out: what is not in the splits.
        contents: what was seen of the text; None where that is not known of all of it.
        versions: package to version.
        dtype: stored token type, where it is not that of the vocabulary.
    """
    text = manifest_json(
        recipe=recipe,
        splits=splits,
        unigram_entropy_nats=entropy_nats(train_counts),
        tokenizer=tokenizer,
        tokenizer_name=tokenizer_name,
        left_out=left_out,
        contents=contents,
        versions=versions,
        dtype=dtype,
    )
    (folder / FILE_NAME).write_text(text, encoding="utf-8")


def versions_here(*more: str) -> dict[str, str]:
    """Return package to version, of all that decides what a text becomes and of some more."""
    packages = ("sentencepiece", "tokenizers", "transformers", "numpy", *more)
    return {
        "tst_megatron": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def check_documents(num_documents: Mapping[str, int], recipe: Mapping[str, Any]) -> None:
    """Check that each split has a document.

    Raises:
        ValueError: one has none.
    """
    if 0 in num_documents.values():
        raise ValueError(
            f"--held-out-fraction {recipe['held_out_fraction']} and --test-fraction "
            f"{recipe['test_fraction']}: give "
            f"{' and '.join(f'{number} {name}' for name, number in num_documents.items())} "
            "documents, each split needs at least one. Change the fractions or give more "
            "documents; a folder that is merged with others later may lack them "
            "(--allow-empty-splits)."
        )


def check_round_trip(
    found: RoundTrip,
    max_changed_fraction: float,
    *,
    factor: float = 1.0,
    at_least: float = 0.0,
    parts: Path | None = None,
) -> None:
    """Check that enough of the text comes back from its tokens.

    Args:
        found: what came of documents that were decoded again.
        max_changed_fraction: share of them that may come back otherwise.
        factor: times that share is refused, of a part of the text.
        at_least: no smaller share is refused, of a few documents.
        parts: where what was encoded is kept.

    Raises:
        ValueError: more do.
    """
    if not found.is_above(max(min(1.0, max_changed_fraction * factor), at_least)):
        return
    kept = f" What is done is kept in {parts}: the same command goes on from there."
    raise ValueError(
        f"--max-changed-fraction {max_changed_fraction:g}: {found}. A run would learn the text as "
        "it comes back. Use another tokenizer, or allow more where this is meant (1 allows all)."
        f"{kept if parts else ''}"
    )


def _partial(output: Path) -> Path:
    # A link to an empty folder is followed: a rename must stay on the file system.
    output = output.resolve()
    return output.with_name(f"{output.name}.partial")


def is_free(output: Path) -> bool:
    """Tell whether a folder can get this name: it is unused, or an empty folder has it."""
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _difference(key: str, there: Any, wanted: Any) -> str:
    if key == "shard":
        its, ours = (Shard.recorded(each) if each else "none" for each in (there, wanted))
        if its == ours:
            return f"shard: {ours} of a text with other files (names or sizes)"
        return f"shard: {its} there, {ours} wanted"
    if not isinstance(wanted, list):
        return f"{key}: {there!r} there, {wanted!r} wanted"
    # A text of a thousand shards has a thousand inputs: the first that differs says enough.
    pairs = enumerate(zip_longest(there or [], wanted), start=1)
    number, (its, ours) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    return f"{key}: number {number} is {its!r} there, {ours!r} wanted"
