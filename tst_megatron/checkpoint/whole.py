"""Find out whether a checkpoint is complete, and which of a folder is the newest that is.

A checkpoint is a folder ``iter_NNNNNNN`` in Megatron's ``torch_dist`` format. A save writes, in
this order: shards (``*.distcp``), ``.metadata`` (where in the shards each stored item is),
``metadata.json`` (the name of the format), and then Megatron's tracker file beside the folder. A
save that was cut off lacks the later ones. Nothing here needs Megatron or a process group.

"Whole" is the word that the messages have for it: complete, and not damaged as far as was looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.content.content import Findings, OnProgress, content_findings
from tst_megatron.checkpoint.content.facts import read_facts, step_problems
from tst_megatron.checkpoint.content.model import model_problems, weight_shapes
from tst_megatron.checkpoint.content.tables import shard_problems, table_problems
from tst_megatron.checkpoint.folder import list_checkpoints, step_in_name, step_of
from tst_megatron.checkpoint.record import MANIFEST, RECORD, record_problems, write_record
from tst_megatron.system.paths import is_own_name, is_there
from tst_megatron.system.pickles.metadata_file import read_description
from tst_megatron.system.records import Damaged, parse_json, read_text


def newest_whole(
    folder: Path, *, has_manifest: bool = False
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest complete checkpoint, and each newer one with its first problem."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in list_checkpoints(folder):
        found = problems(checkpoint, has_manifest=has_manifest)
        if not found:
            return checkpoint, skipped
        skipped.append((checkpoint, found[0]))
    return None, skipped


def whole_before(folder: Path, step: int, has_manifest: bool) -> Iterator[Path]:
    """List the complete checkpoints of earlier steps, newest first."""
    for checkpoint in list_checkpoints(folder):
        if step_of(checkpoint) < step and not problems(checkpoint, has_manifest=has_manifest):
            yield checkpoint


# --- one checkpoint ------------------------------------------------------------------------------


def problems(checkpoint: Path, *, deep: bool = False, has_manifest: bool = False) -> list[str]:
    """List what is wrong with a checkpoint, a sentence each: none if it is complete.

    Args:
        checkpoint: as for ``examine``, like the rest.
        deep: as for ``examine``.
        has_manifest: as for ``examine``.

    Raises:
        OSError: the machine did not let it be read, so that it may be complete all the same.
    """
    found = examine(checkpoint, deep=deep, has_manifest=has_manifest)
    if found.not_read is not None:
        raise found.not_read
    return found.problems


def examine(
    checkpoint: Path,
    *,
    deep: bool = False,
    has_manifest: bool = False,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Find out whether a checkpoint is complete. Damage of any kind is a finding, and no error.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        deep: also read every stored item. Compare it with its checksum, its values with each other,
            and each file with its hash where Megatron wrote a manifest. Without it, only the small
            files are read, and of the stored items the step and the arguments.
        has_manifest: the run saves with ``verify-integrity``, so the manifest must be there.
        on_progress: told how far a deep check is, from this thread.
    """
    found = Findings()
    try:
        _examine(checkpoint, found, deep, has_manifest, on_progress)
    except Exception as error:
        # Damaged bytes raise whatever they happen to mean.
        found.add_unreadable("it", error)
    return found


def _examine(
    checkpoint: Path,
    found: Findings,
    deep: bool,
    has_manifest: bool,
    on_progress: OnProgress | None,
) -> None:
    step = step_in_name(checkpoint)
    if checkpoint.is_symlink() and not checkpoint.exists():
        found.problems.append(f"is a link to {checkpoint.readlink()}, which is not there")
        return
    # 1. The small JSON files: what a save writes last.
    _examine_json(checkpoint, found, has_manifest)
    # 2. The table of what is stored and where; each shard must be as long as it says.
    description = _description(checkpoint, found)
    places = found.places = description.storage_data if description is not None else {}
    if description is not None:
        _examine_tables(checkpoint, description, found)
    # 3. What was written down when the save was complete.
    if not (checkpoint / RECORD).exists():
        found.notes.append(f"its save wrote no {RECORD}: the small files have no hash")
    found.problems += record_problems(checkpoint, places if not found.problems else {}, step)
    if found.problems or description is None:
        return
    # 4. The step and the arguments: do they fit the name, and the shapes of the weights?
    try:
        facts = read_facts(checkpoint, places)
    except ValueError as error:
        found.add(str(error), error)
        return
    if step is not None:
        found.problems += step_problems(facts, step)
    found.problems += model_problems(weight_shapes(description), facts)
    if found.problems or not deep:
        return
    # 5. Every stored byte.
    content = content_findings(
        checkpoint, description, facts, _hashes(checkpoint), on_progress=on_progress
    )
    found.problems += content.problems
    found.notes += content.notes


def _examine_tables(checkpoint: Path, description: Any, found: Findings) -> None:
    try:
        found.problems += table_problems(description)
        found.problems += shard_problems(checkpoint, description.storage_data)
    except Exception as error:
        found.add_unreadable(".metadata", error, "is damaged")


def record_save(checkpoint: Path, places: Mapping[Any, Any] | None = None) -> None:
    """Write the record that ``examine`` compares later; one process does this after a save.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        places: torch's ``storage_data`` of it, if that was read already.

    Raises:
        OSError: nothing can be written.
    """
    places = read_description(checkpoint).storage_data if places is None else places
    write_record(checkpoint, places, step_in_name(checkpoint))


def _examine_json(checkpoint: Path, found: Findings, has_manifest: bool) -> None:
    for name, is_needed in (("metadata.json", True), (MANIFEST, has_manifest)):
        if is_there(checkpoint / name):
            try:
                _read_json(checkpoint / name)
            except Damaged as error:
                found.add(f"{name} {error}", error)
        elif is_needed:
            found.problems.append(f"{name} is missing")
    if found.problems:
        return
    kind = _read_json(checkpoint / "metadata.json").get("sharded_backend")
    if kind != "torch_dist":
        found.problems.append(
            f"metadata.json names the format {kind!r}, and torch_dist is what a run saves"
        )
    if (checkpoint / MANIFEST).exists() and _hashes(checkpoint) is None:
        found.problems.append(f"{MANIFEST} holds no hashes of files")


def _hashes(checkpoint: Path) -> Any:
    """Return the manifest's file -> SHA-256; empty without one, None for other content."""
    if not (checkpoint / MANIFEST).exists():
        return {}
    files = _read_json(checkpoint / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        return None
    is_plain = all(is_own_name(name) and isinstance(files[name], str) for name in files)
    return files if is_plain else None


def _read_json(path: Path) -> dict[str, Any]:
    """Return the block in a file; an empty one if the file is missing or holds something else.

    Raises:
        Damaged: it cannot be read.
    """
    text = read_text(path)
    block = {} if text is None else parse_json(text)
    return block if isinstance(block, dict) else {}


def _description(checkpoint: Path, found: Findings) -> Any:
    """Return what ``.metadata`` says is stored, and where; None if it cannot be read."""
    if not (checkpoint / ".metadata").exists():
        found.problems.append(".metadata is missing")
        return None
    try:
        description = read_description(checkpoint)
        if not description.storage_data:
            found.problems.append(".metadata names nothing that is stored")
            return None
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to mean.
        found.add_unreadable(".metadata", error)
        return None
    return description
