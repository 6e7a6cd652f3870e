"""Read ``plan.yaml`` beside this file: the sweeps of which the evidence consists."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_megatron.system.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples"
WORK = Path("runs") / "evidence"
"""Text and runs; relative, so that a record names no place of one machine."""

PLAN, GPU_PLAN = (Path(__file__).with_name(name) for name in ("plan.yaml", "gpu.yaml"))
_KEYS = {"name", "about", "recipe", "text", "grid", "arms", "seeds", "set", "all-arrays", "states"}
_KEYS_OF_BRANCHES = {"name", "about", "trunk", "step", "grid"}
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_TEXT = re.compile(r"(python|prose|cpp|mixed|few|library|given)-(\d+)")


class PlanError(ValueError):
    """The plan cannot be used; one sentence for each problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One call of ``tst-megatron sweep``."""

    name: str
    about: str
    """The question that it answers, in a sentence."""
    recipe: str
    """File in ``examples/``."""
    text: str
    """Kind and vocabulary, such as ``python-512``; of the kind ``given``, a person prepares it."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    arms: Sequence[str] = ("baseline", "tst")
    seeds: int = 1
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Recipe keys that all runs of the sweep have."""
    all_arrays: bool = False
    """Records keep the losses by sequence of every evaluation, and not of the last alone."""
    states: bool = False
    """Records keep the size of each parameter, and of its moments, at every checkpoint."""

    @property
    def folder(self) -> Path:
        """Return where its runs train."""
        return WORK / "sweeps" / self.name

    def overrides(self) -> list[str]:
        """Return the ``key=value`` words that win over the recipe's keys."""
        keys: dict[str, Any] = {
            "data": {str(WORK / "text" / self.text): 1.0},
            "vocab-size": int(self.text.rpartition("-")[2]),
            **self.keys,
        }
        return [f"{key}={_spelled(keys[key])}" for key in keys]

    def words(self) -> list[str]:
        """Return the words after ``tst-megatron`` that train it, from the project's folder."""
        path = (RECIPES / self.recipe).relative_to(ROOT)
        words = ["sweep", str(path), *self.overrides()]
        words += ["--arms", ",".join(self.arms)]
        for key, values in self.grid.items():
            words += ["--grid", f"{key}={','.join(_spelled(value) for value in values)}"]
        if self.seeds > 1:
            words += ["--seeds", str(self.seeds)]
        return [*words, "--share-trunks", "--output", str(self.folder)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """Branches of a recorded run, one for each combination of a grid.

    They answer what no recipe says: a sweep has one learning rate for both phases, for example.
    """

    name: str
    about: str
    trunk: str
    """``SWEEP/RUN``."""
    step: int
    """Behind which the branches begin; runs keep the checkpoint of a switch."""
    text: str
    """The trunk's."""
    grid: Mapping[str, Sequence[Any]]
    all_arrays: bool = False
    states: bool = False

    @property
    def folder(self) -> Path:
        """Return where its runs train."""
        return WORK / "sweeps" / self.name


Entry = Sweep | Branches


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_plan(path: Path) -> list[Entry]:
    """Return the sweeps in the order in which they are trained, each after its trunk.

    Raises:
        PlanError: with every problem.
    """
    problems: list[str] = []
    entries = read_yaml(path.read_text(encoding="utf-8"), problems.append)
    sweeps: dict[str, Entry] = {}
    for number, entry in enumerate(entries["sweeps"], 1):
        where = f"{path.name}, sweep {entry.get('name', number)}"
        is_branches = "trunk" in entry
        unknown = sorted(set(entry) - (_KEYS_OF_BRANCHES if is_branches else _KEYS))
        needed = _KEYS_OF_BRANCHES if is_branches else {"name", "about", "recipe", "text"}
        missing = sorted(needed - set(entry))
        problems += [f"{where}: {key} is no key of a sweep" for key in unknown]
        problems += [f"{where}: has no {key}" for key in missing]
        if unknown or missing:
            continue
        if not _NAME.fullmatch(entry["name"]):
            problems.append(f"{where}: a name has small letters, digits, dots and dashes alone")
        if entry["name"] in sweeps:
            problems.append(f"{where}: is there twice")
        if is_branches:
            sweep = entry["trunk"].partition("/")[0]
            if sweep not in sweeps:
                problems.append(f"{where}: no sweep before it has the name {sweep}")
                continue
            sweeps[entry["name"]] = Branches(**entry, text=sweeps[sweep].text)
            continue
        if not _TEXT.fullmatch(entry["text"]):
            problems.append(f"{where}: text {entry['text']} is not KIND-VOCABULARY")
        if not (RECIPES / entry["recipe"]).is_file():
            problems.append(f"{where}: there is no recipe {entry['recipe']}")
        own = {"keys": entry.pop("set", {}), "all_arrays": entry.pop("all-arrays", False)}
        sweeps[entry["name"]] = Sweep(**own, **entry)
    if problems:
        raise PlanError("\n".join(problems))
    return list(sweeps.values())
