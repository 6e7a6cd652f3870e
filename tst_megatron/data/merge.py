"""Join prepared folders, one per shard of a text, into the one that `prepare` makes of it all.

The tokens are copied in blocks and looked at once: as a block passes, it is hashed against the
shard's manifest, hashed for the new one, and its training tokens are counted.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from tst_megatron.data.indexed import (
    IndexedFacts,
    IndexedReader,
    IndexedWriter,
    bin_path,
    idx_path,
)
from tst_megatron.data.manifest import (
    FILE_NAME,
    Manifest,
    Split,
    file_sha256,
    load_manifest,
)
from tst_megatron.data.prepared import built_beside, finished, output_problems, write_manifest
from tst_megatron.data.shards import (
    SETTINGS,
    damage,
    inputs_of,
    load_shards,
    mixed_files,
    shard_problems,
)
from tst_megatron.data.tokenizer import store_tokenizer

BLOCK_BYTES = 1 << 23
"""A whole number of tokens."""

TOKENIZER_KEYS = ("tokenizer_sha256", "eod_token", "special_tokens_in_text")
"""Of a recipe; shards whose tokenizers are the same may differ in them, and the first's count."""


def merge(shards: Sequence[Path], output: Path, *, console: Console | None = None) -> Manifest:
    """Join prepared folders into one, in the order given.

    The token files are those that `prepare` makes of all the shards' inputs in that order. A
    finished folder of the same shards is checked and returned with `reused` set. A run that was
    killed leaves `<output>.partial-*` behind; delete it.

    Args:
        shards: folders that `prepare` or `merge` has finished, with one tokenizer and the same
            settings. A split may be empty in some of them, not in all.
        output: folder to make; its parent is made too.
        console: where a progress bar is drawn; none when None.

    Raises:
        ValueError: with every problem that was found: shards that differ, are damaged or hold the
            same text, a split without a document, or an `output` that holds something else.
        OSError: the disk has too little space.
    """
    manifests, problems = load_shards(shards)
    output = output.absolute()
    if manifests:
        recipe = _recipe(manifests)
        problems += shard_problems(manifests) + output_problems(output, recipe)
        # Once they are merged, the shards' tokens are not needed.
        if not (output / FILE_NAME).is_file():
            problems += [problem for manifest in manifests for problem in mixed_files(manifest)]
    if problems:
        raise ValueError("\n".join(problems))
    there = finished(output, recipe)
    if there is not None:
        return there
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(manifests, output)
    with built_beside(output) as folder, _progress(console, manifests) as advance:
        stored = store_tokenizer(manifests[0].tokenizer_path, folder)
        counts = np.zeros(manifests[0].tokenizer.vocab_size, dtype=np.int64)
        facts = _join(folder, manifests, counts, advance)
        write_manifest(
            folder,
            recipe=recipe,
            splits=facts,
            train_counts=counts,
            tokenizer=manifests[0].tokenizer,
            tokenizer_name=stored.name,
            empty_documents=sum(manifest.empty_documents for manifest in manifests),
            versions=_versions(manifests),
        )
    return load_manifest(output)


def _recipe(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What `prepare` records for all inputs in this order, and of which files each shard was."""
    return {
        "inputs": [entry for manifest in manifests for entry in inputs_of(manifest)],
        **{key: manifests[0].recipe.get(key) for key in (*TOKENIZER_KEYS, *SETTINGS)},
        "shards": [
            {
                "num_inputs": len(inputs_of(manifest)),
                "sha256": {
                    file: sha256
                    for name, split in manifest.splits().items()
                    for file, sha256 in (
                        (f"{name}.bin", split.bin_sha256),
                        (f"{name}.idx", split.idx_sha256),
                    )
                },
            }
            for manifest in manifests
        ],
    }


def _versions(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Package to the versions that made the shards."""
    names = {name: None for manifest in manifests for name in manifest.versions}
    return {
        name: ", ".join(sorted({m.versions[name] for m in manifests if name in m.versions}))
        for name in names
    }


def _join(
    folder: Path,
    manifests: Sequence[Manifest],
    counts: npt.NDArray[np.int64],
    advance: Callable[[int], None],
) -> dict[str, IndexedFacts]:
    """Copy every split of every shard; raise for all damaged files, when all have been read."""
    problems = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(IndexedWriter(folder / name, vocab_size=len(counts)))
            for name in manifests[0].splits()
        }
        for name, writer in writers.items():
            for manifest in manifests:
                counted = counts if name == "train" else None
                problems += _add(writer, manifest.splits()[name], counted, advance)
        if problems:
            raise ValueError("\n".join(problems))
        return {name: writer.finish() for name, writer in writers.items()}


def _add(
    writer: IndexedWriter,
    split: Split,
    counts: npt.NDArray[np.int64] | None,
    advance: Callable[[int], None],
) -> list[str]:
    """Append one split of a shard, and say which of its files is damaged."""
    # Its pages stay in memory for the lengths, so the index too is read from disk once.
    if file_sha256(idx_path(split.prefix)) != split.idx_sha256:
        return [damage(idx_path(split.prefix))]
    digest = hashlib.sha256()
    num_counted = 0

    def blocks() -> Iterator[bytes]:
        nonlocal num_counted
        with bin_path(split.prefix).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                if counts is not None:
                    num_counted += _count(np.frombuffer(block, dtype=writer.dtype), counts)
                advance(len(block))
                yield block

    writer.add_stored(blocks(), IndexedReader(split.prefix).document_lengths)
    is_counted = counts is None or num_counted == split.tokens
    if digest.hexdigest() != split.bin_sha256 or not is_counted:
        return [damage(bin_path(split.prefix))]
    return []


def _count(ids: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> int:
    """Add up how often each token occurs; ids that no vocabulary has are left out."""
    # In a damaged file they are anything, and a count per number up to 2^31 would fill the memory.
    if int(ids.min()) < 0 or int(ids.max()) >= len(counts):
        ids = ids[(ids >= 0) & (ids < len(counts))]
    counts += np.bincount(ids, minlength=len(counts))
    return len(ids)


def _check_space(manifests: Sequence[Manifest], output: Path) -> None:
    needed = sum(
        path.stat().st_size
        for manifest in manifests
        for split in manifest.splits().values()
        for path in (bin_path(split.prefix), idx_path(split.prefix))
    )
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{output.parent}: {free / 1e9:.1f} GB are free, the merged folder needs "
            f"{needed / 1e9:.1f} GB. Make room, or give an output folder on another disk.",
        )


@contextmanager
def _progress(
    console: Console | None, manifests: Sequence[Manifest]
) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes copied since its last call."""
    if console is None:
        yield lambda num_bytes: None
        return
    with Progress(console=console) as progress:
        total = sum(
            bin_path(split.prefix).stat().st_size
            for manifest in manifests
            for split in manifest.splits().values()
        )
        task = progress.add_task("merging", total=total)
        yield lambda num_bytes: progress.advance(task, num_bytes)
