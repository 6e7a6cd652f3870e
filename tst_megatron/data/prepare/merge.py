"""Join prepared folders, one per shard of a text, into the one that `prepare` makes of it all.

The tokens are copied in blocks and looked at once: as a block passes, it is hashed against the
shard's manifest, hashed for the new one, and its training tokens are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tst_megatron.data.manifest import FILE_NAME, Contents, LeftOut, Manifest, load_manifest
from tst_megatron.data.prepare.merge_checks import (
    SETTINGS,
    incomplete_texts,
    load_shards,
    mixed_files,
    repeated_inputs,
    shard_problems,
)
from tst_megatron.data.prepare.output_folder import (
    REJECTED_NAME,
    built_beside,
    delete_unfinished,
    finished,
    output_problems,
    unfinished_problems,
    write_manifest,
)
from tst_megatron.data.tokenizer.load import store_tokenizer
from tst_megatron.data.tokenizer.round_trip import RoundTrip
from tst_megatron.data.tokens.append import append
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.writer import IndexedFacts, IndexedWriter
from tst_megatron.data.verify.recorded_files import differs
from tst_megatron.system.machine.disk import check_room
from tst_megatron.system.progress import byte_progress, say_warning

TOKENIZER_KEYS = ("tokenizer_sha256", "eod_token", "special_tokens_in_text")
"""Keys of a recipe in which shards with the same tokenizer may differ; the first shard's count."""


def merge(shards: Sequence[Path], output: Path, *, console: Console | None = None) -> Manifest:
    """Join prepared folders into one, in the order given.

    The token files are those that `prepare` makes of all the shards' inputs in that order; where it
    leaves out copies, those in other shards are here. A finished folder of the same shards is
    checked and returned with `reused` set. A run that was killed leaves `<output>.partial` behind,
    which the next one deletes.

    Args:
        shards: folders that `prepare` or `merge` has finished, with one tokenizer and the same
            settings. A split may be empty in some of them, not in all.
        output: folder to make; its parent is made too.
        console: where progress goes, with notes and warnings; nowhere when None.

    Raises:
        ValueError: with every problem that was found: shards that differ, are damaged or hold the
            same text, a split without a document, or an `output` that holds something else.
        OSError: the disk has too little space.
    """
    # 1. Every reason against it, from manifests and file sizes alone.
    manifests, problems = load_shards(shards)
    output = output.absolute()
    if not problems:
        # A shard that cannot be read may be the one that seems to be missing.
        problems += incomplete_texts(manifests)
    if manifests:
        recipe = _recipe(manifests)
        problems += shard_problems(manifests) + output_problems(output, recipe)
        # Once they are merged, the shards' tokens are not needed.
        if not (output / FILE_NAME).is_file():
            problems += unfinished_problems(output)
            problems += [problem for manifest in manifests for problem in mixed_files(manifest)]
    if problems:
        raise ValueError("\n".join(problems))

    # 2. Nothing to do if the folder is finished.
    there = finished(output, recipe)
    if there is not None:
        # A run may have been killed between the rename and this cleanup.
        delete_unfinished(output)
        return there

    # 3. The work.
    if console:
        for note in repeated_inputs(manifests):
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if silent := _without_contents(manifests):
            say_warning(console, silent)
    _build(manifests, recipe, output, console)
    return load_manifest(output)


def _build(
    manifests: Sequence[Manifest],
    recipe: Mapping[str, Any],
    output: Path,
    console: Console | None,
) -> None:
    """Join the shards in a folder beside the output, which then gets the output's name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        built_beside(output) as folder,
        byte_progress(console, "merging", _num_bytes(manifests)) as advance,
    ):
        # Now, because the remains of a killed run have been deleted and take no space.
        _check_space(manifests, output)
        stored = store_tokenizer(manifests[0].tokenizer_path, folder)
        counts = np.zeros(manifests[0].tokenizer.vocab_size, dtype=np.int64)
        facts = _join(folder, manifests, counts, advance)
        _join_rejected(folder, manifests)
        write_manifest(
            folder,
            recipe=recipe,
            splits=facts,
            train_counts=counts,
            tokenizer=manifests[0].tokenizer,
            tokenizer_name=stored.name,
            left_out=_left_out(manifests),
            contents=_contents(manifests),
            versions=_versions(manifests),
        )


def _recipe(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Return what `prepare` records for all inputs in this order, and the files of each shard."""
    return {
        "inputs": [entry for manifest in manifests for entry in manifest.inputs()],
        **{key: manifests[0].recipe.get(key) for key in (*TOKENIZER_KEYS, *SETTINGS)},
        # Copies in different shards are still there.
        "deduplicate": "each shard" if manifests[0].recipe.get("deduplicate") else False,
        "shards": [shard for manifest in manifests for shard in _shards_of(manifest)],
    }


def _shards_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what a folder adds to the list of shards: those it was merged from, or itself."""
    if "shards" in manifest.recipe:
        return list(manifest.recipe["shards"])
    return [
        {
            "num_inputs": len(manifest.inputs()),
            **({"shard": manifest.recipe["shard"]} if "shard" in manifest.recipe else {}),
            "sha256": {
                file: sha256
                for name, split in manifest.splits().items()
                for file, sha256 in (
                    (f"{name}.bin", split.bin_sha256),
                    (f"{name}.idx", split.idx_sha256),
                )
            },
        }
    ]


def _left_out(manifests: Sequence[Manifest]) -> LeftOut:
    each = [manifest.left_out for manifest in manifests]
    return LeftOut(
        empty=sum(left_out.empty for left_out in each),
        rejected=sum(left_out.rejected for left_out in each),
        duplicates=sum(left_out.duplicates for left_out in each),
    )


def _contents(manifests: Sequence[Manifest]) -> Contents | None:
    each = [manifest.contents for manifest in manifests if manifest.contents is not None]
    if len(each) < len(manifests):
        return None
    not_read: list[Mapping[str, Any]] = []
    round_trip = RoundTrip()
    for contents in each:
        # Shards of a text have looked into the same folders.
        not_read += [entry for entry in contents.not_read if entry not in not_read]
        round_trip.take(contents.round_trip)
    files = [entry for contents in each for entry in contents.files]
    return Contents(files=files, not_read=not_read, round_trip=round_trip)


def _without_contents(manifests: Sequence[Manifest]) -> str | None:
    """Say that some shards keep the others' record of their files from being merged."""
    silent = [manifest.path.parent for manifest in manifests if manifest.contents is None]
    if not silent or len(silent) == len(manifests):
        return None
    return (
        f"{len(silent):,} of {len(manifests):,} shards, the first {silent[0]}, were prepared by an "
        "earlier version that did not record documents of each file, files that were not read and "
        f"decoded documents. {FILE_NAME} of the merged folder leaves this out for all of them; "
        "prepare those shards again to keep it"
    )


def _join_rejected(folder: Path, manifests: Sequence[Manifest]) -> None:
    """Join the shards' lists of lines and files that held no document."""
    for manifest in manifests:
        there = manifest.path.parent / REJECTED_NAME
        if there.is_file():
            with (folder / REJECTED_NAME).open("ab") as file:
                file.write(there.read_bytes())


def _num_bytes(manifests: Sequence[Manifest]) -> int:
    return sum(
        bin_path(split.prefix).stat().st_size
        for manifest in manifests
        for split in manifest.splits().values()
    )


def _versions(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return, for each package, the versions that made the shards."""
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
                split = manifest.splits()[name]
                damaged = append(
                    writer,
                    split.prefix,
                    (split.bin_sha256, split.idx_sha256),
                    counts=counted,
                    advance=advance,
                )
                problems += [differs(damaged)] if damaged else []
        if problems:
            raise ValueError("\n".join(problems))
        return {name: writer.finish() for name, writer in writers.items()}


def _check_space(manifests: Sequence[Manifest], output: Path) -> None:
    needed = sum(
        path.stat().st_size
        for manifest in manifests
        for split in manifest.splits().values()
        for path in (bin_path(split.prefix), idx_path(split.prefix))
    )
    check_room(output, needed, "the merged folder")
