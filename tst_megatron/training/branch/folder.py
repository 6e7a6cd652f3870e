"""Make the run folder of a branch out of files of its trunk: whole, or not at all.

Files of the checkpoint get a second name (a hard link), which takes no time and no room. Where the
file system cannot do that, they are copied. A run never writes into a file that has a second name
(``checkpoint/retention.py``), so trunk and branch stay apart.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tst_megatron.checkpoint.folder import checkpoint_of, step_of, write_tracker
from tst_megatron.checkpoint.known_saves import note_save
from tst_megatron.checkpoint.record import SMALL_FILES
from tst_megatron.checkpoint.run_files import Branch, places_of_tokenizers, write_branch
from tst_megatron.checkpoint.whole import problems
from tst_megatron.system.files import file_sha256, folder_appearing_whole, write_bytes_beside
from tst_megatron.system.machine.disk import check_room
from tst_megatron.system.progress import byte_progress
from tst_megatron.system.records import Damaged, read_bytes, read_json
from tst_megatron.training.report.metrics_file import lines_until
from tst_megatron.training.report.versions import read_layouts
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.prepare import folders

_NO_LINKS = (
    *(errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS),
    *(errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL),
)
"""Errors of a file system that cannot give this file a second name there."""

_OF_AN_EVALUATION = re.compile(r".+-([0-9]{7,})\.[a-z]+")
"""A file of one evaluation, such as ``validation-0000250.npz``."""

_BYTES_AT_A_TIME = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class NewBranch:
    """What a branch begins with."""

    trunk: RunFolder
    checkpoint: Path
    """Of the trunk, complete."""
    recipe: str
    """Content of ``recipe.yaml``."""
    resolved: str
    """Content of ``resolved.yaml``."""
    has_manifest: bool
    """Checkpoints end with a manifest of hashes."""

    @property
    def step(self) -> int:
        """The trunk's step at which the branch begins."""
        return step_of(self.checkpoint)


def make_folder(new: NewBranch, output: Path, *, console: Console | None) -> list[str]:
    """Make the run folder of a branch. It appears complete under its name, or not at all.

    Args:
        new: what goes into it.
        output: does not exist, or is an empty folder.
        console: shows how far a copy is; None shows nothing.

    Returns:
        A line for each thing that its owner should know.

    Raises:
        ValueError: another process makes the same output, or the checkpoint changed meanwhile.
        OSError: files cannot be read or written, or there is no room for a copy.
    """
    with folder_appearing_whole(output) as folder:
        run = RunFolder(folder)
        for each in folders(run):
            each.mkdir()
        said = _take_checkpoint(new, run, console)
        run.recipe.write_text(new.recipe, encoding="utf-8")
        run.resolved.write_text(new.resolved, encoding="utf-8")
        note_save(run.path, new.step)
        said += _take_metrics(new, run)
        _take_evaluations(new, run)
        _take_layouts(new, run)
        if new.trunk.tensorboard.is_dir():
            shutil.copytree(new.trunk.tensorboard, run.tensorboard, dirs_exist_ok=True)
        write_branch(run.path, _record(new))
    return said


def _record(new: NewBranch) -> Branch:
    """Return what the branch is to know of its trunk."""
    recipe, path = new.trunk.recipe, new.trunk.path.resolve()
    small = (*SMALL_FILES, "common.pt")
    return Branch(
        trunk=path,
        trunk_name=path.name,
        step=new.step,
        recipe_sha256=file_sha256(recipe) if recipe.is_file() else None,
        checkpoint_sha256={
            name: file_sha256(new.checkpoint / name)
            for name in small
            if (new.checkpoint / name).is_file()
        },
    )


# --- the checkpoint -------------------------------------------------------------------------------


def _take_checkpoint(new: NewBranch, run: RunFolder, console: Console | None) -> list[str]:
    """Give the files of the trunk's checkpoint names in the branch, and its tokenizer too."""
    target = checkpoint_of(run.checkpoints, new.step)
    source = new.checkpoint.resolve()
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    said = []
    left = _link(source, target, files)
    if left:
        total = sum((source / name).stat().st_size for name in left)
        check_room(run.path, total, "a copy of the checkpoint")
        with byte_progress(console, "copying the checkpoint", total) as advance:
            for name in left:
                _copy((source / name).resolve(), target / name, advance)
        said.append(
            f"{len(left)} files of the checkpoint ({total / 1e9:.2f} GB) were copied, because the "
            "file system gives no second names (hard links) there"
        )
    if found := problems(target, has_manifest=new.has_manifest):
        raise ValueError(
            f"{new.checkpoint}: {found[0]}, in what was taken of it. Does its run save this step "
            "again, or delete it? Try again"
        )
    for tokenizer in places_of_tokenizers(new.trunk.checkpoints):
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, run.checkpoints / tokenizer.name)
        elif tokenizer.is_file():
            shutil.copyfile(tokenizer, run.checkpoints / tokenizer.name)
    write_tracker(run.checkpoints, new.step)
    return said


def _link(source: Path, target: Path, files: Sequence[Path]) -> list[Path]:
    """Link files, and return those that the file system does not let be linked."""
    left = []
    for name in files:
        try:
            # What a link leads to: a hard link to a link would end with the trunk.
            os.link((source / name).resolve(), target / name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            left.append(name)
    return left


def _copy(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    with source.open("rb") as original, target.open("wb") as new:
        while part := original.read(_BYTES_AT_A_TIME):
            new.write(part)
            advance(len(part))


# --- the records ----------------------------------------------------------------------------------


def _take_metrics(new: NewBranch, run: RunFolder) -> list[str]:
    """Copy the trunk's rows up to the step. A record decides nothing: what is damaged is said."""
    try:
        content = read_bytes(new.trunk.metrics)
    except Damaged as error:
        return [f"{new.trunk.metrics} {error}: the branch begins without the trunk's numbers"]
    if content is None:
        return [f"{new.trunk.metrics} is missing: the branch begins without the trunk's numbers"]
    kept, _, _ = lines_until(content, new.step)
    write_bytes_beside(run.metrics, b"".join(line + b"\n" for line in kept))
    return []


def _take_evaluations(new: NewBranch, run: RunFolder) -> None:
    """Copy what the trunk kept of its evaluations up to the step."""
    source = new.trunk.path / "evaluations"
    for path in _files_until(source, new.step):
        (run.path / source.name).mkdir(exist_ok=True)
        shutil.copyfile(path, run.path / source.name / path.name)


def _files_until(folder: Path, step: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = _OF_AN_EVALUATION.fullmatch(path.name)
        if name and int(name[1]) <= step and path.is_file():
            yield path


def _take_layouts(new: NewBranch, run: RunFolder) -> None:
    """Copy the trunk's versions, with the layouts that made the steps up to this one."""
    with contextlib.suppress(Damaged):
        versions = read_json(new.trunk.versions)
        if versions is not None:
            layouts, _ = read_layouts(new.trunk.versions)
            versions["layouts"] = [each for each in layouts if each["after step"] < new.step]
            content = json.dumps(versions, indent=2) + "\n"
            write_bytes_beside(run.versions, content.encode("utf-8"))
