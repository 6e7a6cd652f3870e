"""Read a checkpoint's step and arguments without Megatron.

The common state is a small item of one shard. The step in it must be the step of the folder's name,
and every count that follows from the step must agree; the tensors must be those of the model that
the arguments describe.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tst_megatron.system.pickles.inert_pickle import read_inert
from tst_megatron.system.pickles.torch_archive import archive_problem
from tst_megatron.system.pickles.torch_pickles import EXTRA_STATE, check_extra_states, load_archive
from tst_megatron.system.problems import shortened

_COMMON = re.compile(r"common_state/")

LEGACY = "common.pt"
"""File of its own in which Megatron kept the common state before it was an item."""
_OPTIMIZER_GROUP = re.compile(
    r"(chained_\d+\.)?optimizer\.distributed\.dp_group_idx_\d+\.optimizer/"
)
"""In the bucket format each group of ranks has its optimizer's counts beside its buckets."""

OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
"""The start of names of optimizer state; all other tensors are of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The plain values of a checkpoint's common state."""

    state: Mapping[Any, Any]
    """``iteration`` and so on; what only a library could read is a placeholder."""
    groups: tuple[tuple[str, Any], ...]
    """Name and content of the optimizer's counts that are stored apart."""

    def argument(self, name: str) -> Any:
        """One of Megatron's arguments of the job that saved it; None if it does not say."""
        return getattr(self.state.get("args"), name, None)


def read_facts(checkpoint: Path, places: Mapping[Any, Any]) -> Facts:
    """Read them.

    Args:
        checkpoint: an ``iter_`` folder.
        places: torch's ``storage_data``.

    Raises:
        ValueError: they are not there or damaged.
    """
    state: Any = None
    groups = []
    for index, item in places.items():
        if _COMMON.match(index.fqn):
            state = read_object(checkpoint, index.fqn, item)
        elif _OPTIMIZER_GROUP.match(index.fqn):
            groups.append((index.fqn, read_object(checkpoint, index.fqn, item)))
    if state is None and (checkpoint / LEGACY).is_file():
        place = SimpleNamespace(relative_path=LEGACY, offset=0, length=-1)
        state = read_object(checkpoint, LEGACY, place)
    if state is None:
        raise ValueError(".metadata names no common_state, which holds the step")
    if not isinstance(state, dict):
        raise ValueError("common_state holds no step")
    return Facts(state=state, groups=tuple(groups))


def read_object(checkpoint: Path, name: str, item: Any) -> Any:
    """The plain values of a stored object, which is no tensor.

    Args:
        checkpoint: an ``iter_`` folder.
        name: of the object.
        item: torch's record of where it is.

    Raises:
        ValueError: it is damaged, or names what no checkpoint holds.
    """
    with (checkpoint / item.relative_path).open("rb") as shard:
        shard.seek(item.offset)
        archive = io.BytesIO(shard.read(item.length))
    if problem := archive_problem(archive):
        raise ValueError(f"{item.relative_path}: {name} is damaged ({problem})")
    try:
        content = read_inert(archive)
        if EXTRA_STATE in name:
            # Transformer Engine unpickles once more what these tensors hold.
            archive.seek(0)
            check_extra_states(load_archive(archive, map_location="cpu"))
    except Exception as error:
        raise ValueError(
            f"{item.relative_path}: {name} cannot be read ({type(error).__name__}: {error})"
        ) from error
    # Megatron wraps each object in a list.
    return content[0] if isinstance(content, list) and len(content) == 1 else content


# --- the step ------------------------------------------------------------------------------------


def step_problems(facts: Facts, step: int) -> list[str]:
    """Counts of a checkpoint that are not those of its folder's step.

    Args:
        facts: of the checkpoint.
        step: of its folder's name.
    """
    iteration = facts.state.get("iteration")
    if iteration != step:
        return [f"the folder's name says step {step}, and what is in it is of step {iteration}"]
    found = [
        f"{name} is {count:,}, and step {step} makes it {wanted:,}"
        for name, count, wanted in _counts(facts, step)
        if _is_number(count) and count != wanted
    ]
    # A reset at the switch starts this count again; fp16 does not count skipped steps.
    may_be_less = bool(facts.argument("fp16")) or bool(_tst(facts).get("reset-optimizer"))
    # Somebody else's run may have started with a new optimizer.
    for name, count in _optimizer_steps(facts) if _tst(facts).get("cursor") else ():
        if count > step or (count < step and not may_be_less):
            found.append(f"{name} is of step {count:,.0f}, and the checkpoint of step {step}")
    return shortened(found)


def _tst(facts: Facts) -> Mapping[str, Any]:
    block = facts.argument("tst")
    return block if isinstance(block, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _counts(facts: Facts, step: int) -> Iterator[tuple[str, Any, int]]:
    """Name, count and what it should be."""
    cursor = _tst(facts).get("cursor")
    if isinstance(cursor, dict):
        yield "the step of the token stream's cursor", cursor.get("step"), step
    batch = facts.argument("global_batch_size")
    # A batch that grew has other counts; a run of ours has none.
    if not _is_number(batch) or not cursor or facts.argument("rampup_batch_size"):
        return
    samples = facts.argument("consumed_train_samples")
    yield "the count of samples", samples, step * batch
    scheduler = facts.state.get("opt_param_scheduler")
    if isinstance(scheduler, dict) and not facts.argument("fp16"):
        yield "the learning rate's count of samples", scheduler.get("num_steps"), step * batch


def _optimizer_steps(facts: Facts) -> Iterator[tuple[str, float]]:
    for name, content in (("the optimizer", facts.state.get("optimizer")), *facts.groups):
        for groups in _values_of(content, "param_groups"):
            for group in groups if isinstance(groups, list) else []:
                count = group.get("step") if isinstance(group, dict) else None
                if isinstance(count, int | float):
                    yield name, count


def _values_of(content: Any, key: str) -> Iterator[Any]:
    """Whatever nested dictionaries hold under a key."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            else:
                yield from _values_of(value, key)
