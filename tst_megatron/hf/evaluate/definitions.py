"""Find lm-eval's tasks behind a name, and the data that each of them reads.

The definitions are lm-eval's own. With local data each task gets a YAML file that includes the
upstream one and replaces its data set fields alone, so prompts and metrics stay upstream's.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tst_megatron.hf.evaluate.paper import TASKS

PAPER = "paper"
READER = "tst_megatron.hf.evaluate.local_data.read_splits"
"""The function that lm-eval calls for the data of a task, as its YAML names it."""

_PAPER_FOLDERS = (
    *("arc", "hellaswag", "mmlu/default", "mmlu/continuation"),
    *("openbookqa", "piqa", "super_glue/boolq", "winogrande"),
)
"""The folders in which lm-eval 0.4.13 keeps the paper's tasks."""

_EXAMPLE_SPLITS = ("fewshot_split", "training_split", "validation_split")
"""The splits from which lm-eval takes the examples in a prompt; the first found counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set as a task names it on the Hugging Face hub."""

    path: str
    name: str | None
    arguments: tuple[tuple[str, Any], ...] = ()
    """Further arguments of ``datasets.load_dataset``."""

    @property
    def folder(self) -> str:
        """The place of its files in the folder of local data; several tasks share them."""
        return f"{self.path.replace('/', '--')}/{self.name or 'default'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskData:
    """One task that is not a group, and the data it reads."""

    task: str
    data: DataSet
    splits: tuple[str, ...]
    """Of the evaluation, and of the examples in its prompts if there are any."""

    @property
    def files(self) -> dict[str, str]:
        """Split to file, relative to the folder of local data."""
        return {split: f"{self.data.folder}/{split}.jsonl" for split in self.splits}


def manager(names: Iterable[str]) -> Any:
    """lm-eval's ``TaskManager`` over its own tasks: those of the paper alone where they suffice."""
    few = _manager(is_whole=False)
    return few if all(name in few.task_index for name in names) else _manager(is_whole=True)


@functools.cache
def _manager(*, is_whole: bool) -> Any:
    from lm_eval import tasks

    if is_whole:
        # Ten seconds: it reads 14,000 files.
        return tasks.TaskManager()
    root = Path(tasks.__file__).parent
    return tasks.TaskManager(
        include_defaults=False, include_path=[root / folder for folder in _PAPER_FOLDERS]
    )


def task_names(tasks: str) -> list[str]:
    """The names in ``--tasks``, with ``paper`` written out, each once.

    Args:
        tasks: names separated by commas: tasks, groups or tags of lm-eval, or ``paper``.

    Raises:
        ValueError: no name, or some that lm-eval does not know; with the nearest ones.
    """
    given = [name for part in tasks.split(",") if (name := part.strip())]
    names = [name for part in given for name in (TASKS if part == PAPER else (part,))]
    if not names:
        raise ValueError(f"--tasks {tasks!r} names no task. Use {PAPER}, or names of lm-eval")
    known = manager(names).task_index
    problems = [_unknown(name, known) for name in names if name not in known]
    if problems:
        raise ValueError("\n".join(problems))
    return list(dict.fromkeys(names))


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [PAPER, *known], n=1, cutoff=0.5)
    advice = f"Did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists them."
    return f"--tasks {name}: lm-eval knows no such task. {advice}"


def data_of(names: Iterable[str]) -> list[TaskData]:
    """Return the data behind names of tasks, groups and tags.

    Args:
        names: names that lm-eval knows.

    Raises:
        ValueError: a task whose data cannot lie on disk as one file per split.
    """
    found, problems = [], []
    for name, entry in _below(names).items():
        if entry.kind.name == "GROUP":
            continue
        config = entry.cfg or {}
        if "class" in config or not config.get("dataset_path") or "custom_dataset" in config:
            problems.append(
                f"{name}: lm-eval makes its data by a program, so it has no files. Leave it out, "
                "or evaluate it without --data on a machine that has a connection"
            )
            continue
        arguments = config.get("dataset_kwargs") or {}
        data = DataSet(
            path=config["dataset_path"],
            name=config.get("dataset_name"),
            arguments=tuple(sorted(arguments.items())),
        )
        found.append(TaskData(task=name, data=data, splits=_splits(config)))
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _splits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that are needed: lm-eval evaluates on test, or else on validation."""
    evaluated = config.get("test_split") or config.get("validation_split")
    examples = None
    if config.get("num_fewshot") and "samples" not in (config.get("fewshot_config") or {}):
        examples = next((config[key] for key in _EXAMPLE_SPLITS if config.get(key)), None)
    return tuple(dict.fromkeys(split for split in (evaluated, examples) if split))


def _below(names: Iterable[str]) -> dict[str, Any]:
    """The tasks and groups behind names, with their entries in lm-eval's index."""
    names = list(names)
    index = manager(names).task_index
    found: dict[str, Any] = {}
    while names:
        name = names.pop(0)
        entry = index[name]
        if entry.kind.name == "TAG":
            names += sorted(entry.tags)
        elif name not in found:
            found[name] = entry
            if entry.kind.name == "GROUP":
                names += _members(entry.cfg, index)
    return found


def _members(group: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[str]:
    """Registered names in a group, also those of groups that are written out inside it."""
    for member in group.get("task") or ():
        name = member if isinstance(member, str) else member.get("group", member.get("task"))
        if isinstance(name, str) and name in index:
            yield name
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _members(member, index)


def write_overlay(folder: Path, names: Iterable[str], data: Iterable[TaskData], root: Path) -> None:
    """Write the YAML files by which lm-eval reads local data.

    Args:
        folder: an empty folder.
        names: what is evaluated.
        data: ``data_of(names)``.
        root: the folder of local data.
    """
    local = {task.task: task for task in data}
    for number, (name, entry) in enumerate(sorted(_below(names).items())):
        lines = [f"include: {yaml.safe_dump(str(entry.yaml_path)).splitlines()[0]}"]
        if name in local:
            files = {split: str(root / file) for split, file in local[name].files.items()}
            fields = {
                "dataset_path": None,
                "dataset_name": None,
                "dataset_kwargs": {"files": files},
            }
            # lm-eval reads a split for examples also where no prompt has one.
            fields |= {
                key: None
                for key in ("test_split", *_EXAMPLE_SPLITS)
                if entry.cfg.get(key) not in files
            }
            # YAML's tag for a function is lm-eval's own.
            lines += [f"custom_dataset: !function {READER}", yaml.safe_dump(fields)]
        (folder / f"{number:05d}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
