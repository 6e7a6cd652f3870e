"""Tell if a recipe is still the same run as at an earlier start, and what differs.

Two recipes are the same run if Megatron makes the same of every key that decides numbers, however
the recipe spells it, and if the text, the phases and the profile are the same.
``recipe/keys/kinds.py`` says which keys decide.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tst_megatron.recipe.keys.kinds import EVALUATES, KINDS, RUN, evaluation_leaves_a_trace
from tst_megatron.recipe.tst_config import TSTConfig

if TYPE_CHECKING:
    # Imports torch, which takes longer than `tst-megatron status` may.
    from tst_megatron.recipe.check.checked import CheckedRecipe
    from tst_megatron.recipe.keys.flags import Flags

PROFILE, TEXT = "given by the profile", "training text"
NOT_MEGATRONS = ("profile", "data", "tst", "phases", PROFILE, TEXT)
"""Entries of a run's identity that are no keys of Megatron's."""

OF_THE_PHASES = ("bag-size", "superposition-fraction", "superposition-steps", "schedule")
"""Keys of the ``tst:`` block that decide its phases and nothing else."""

OF_VALIDATION = ("eval-iters", "eval-global-batch-size")
"""Keys that decide which held-out positions an evaluation reads."""

FILLED_IN_BY_THE_LOOP = {
    "lr_decay_iters": "train_iters",
    "eval_global_batch_size": "global_batch_size",
    "eval_micro_batch_size": "micro_batch_size",
}
"""Attributes that Megatron takes from another one after validation, where they are not given."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a recipe is another run than one that was started before."""

    key: str
    """Of the recipe; ``tst.`` stands before those of its block. Or ``phases`` or ``training text``,
    which follow from several keys."""
    was: Any
    """The value that the run was started with; None where it had none."""
    is_now: Any
    fix: str
    """The advice for a run that is to go on as it was."""

    def sentence(self) -> str:
        """Say it to the owner of a run that is to be resumed."""
        was, is_now = (
            "nothing" if each is None else repr(each) for each in (self.was, self.is_now)
        )
        return (
            f"{self.key}: this run was started with {was}, and the recipe now says {is_now}. "
            f"{self.fix}"
        )


def identity(checked: CheckedRecipe) -> dict[str, Any]:
    """Return what decides a run; most of it must stay the same over its life."""
    steps = [[phase.bag_size, phase.num_steps] for phase in checked.schedule.phases]
    return {
        **checked.recipe.resolved(),
        "phases": steps,
        PROFILE: checked.profile_values,
        TEXT: [corpus.manifest.train.text_sha256 for corpus in checked.corpora],
    }


def differences(before: Mapping[str, Any], checked: CheckedRecipe) -> list[str]:
    """List why a recipe is another run than one that was started before, a sentence each.

    Args:
        before: the ``identity`` of that run, as its folder kept it.
        checked: the recipe of this start.
    """
    return [each.sentence() for each in what_differs(before, checked)]


def what_differs(before: Mapping[str, Any], checked: CheckedRecipe) -> list[Difference]:
    """List in what a recipe is another run than one that was started before.

    Args:
        before: as for ``differences``.
        checked: likewise.
    """
    now = identity(checked)
    found = _of_keys(before, checked)
    if before.get("profile") != now["profile"]:
        found.append(_difference("profile", before.get("profile"), now["profile"]))
    return found + _of_phases(before, now) + _of_text(before, now)


def values_of(run: Mapping[str, Any], known: Flags) -> argparse.Namespace:
    """Return what Megatron's parser makes of a run's keys, its profile's included.

    Args:
        run: its ``identity``.
        known: Megatron's parser.
    """
    return known.parse(_own_and_given(run, known))


def notes(before: Mapping[str, Any], checked: CheckedRecipe) -> list[str]:
    """List what may change and makes the curves of this start differ from those before."""
    parsed_old = values_of(before, checked.known)
    parsed_new = values_of(identity(checked), checked.known)
    changed = []
    for key in OF_VALIDATION:
        name = checked.known.destination(key)
        if name is not None and not _is_same(_get(parsed_old, name), _get(parsed_new, name)):
            changed.append(f"{key} {_get(parsed_old, name)} -> {_get(parsed_new, name)}")
    return [
        f"{change}: validation losses from here on are of other held-out positions than before"
        for change in changed
    ]


def _of_keys(before: Mapping[str, Any], checked: CheckedRecipe) -> list[Difference]:
    """Keys of Megatron's that decide numbers and come to something else."""
    known, now = checked.known, identity(checked)
    old, new = _own_and_given(before, known), _own_and_given(now, known)
    old_values, new_values = known.parse(old), known.parse(new)
    deciding = _deciding(known, (old_values, new_values))
    # What only profiles say follows from the profile and the layout.
    own = {
        known.destination(key): key
        for run in (before, now)
        for key, value in run.items()
        if key not in NOT_MEGATRONS and value is not None
    }
    differing = [
        name
        for name in own
        if name in deciding and not _is_same(_get(old_values, name), _get(new_values, name))
    ]
    if differing:
        differing = _after_validation(differing, deciding, old, new, checked)
    found = [_difference_of_key(own[name], before, now, old, known) for name in differing]
    return found + [
        _difference(key, value, now.get(key))
        for key, value in before.items()
        if key not in NOT_MEGATRONS and known.destination(key) is None and value != now.get(key)
    ]


def _own_and_given(run: Mapping[str, Any], known: Flags) -> dict[str, Any]:
    """Megatron's keys of a run, its profile's included, without those that Megatron has no more."""
    own = {k: v for k, v in run.items() if k not in NOT_MEGATRONS and known.destination(k)}
    given = {k: v for k, v in (run.get(PROFILE) or {}).items() if known.destination(k)}
    return known.overlay(own, given)


def _deciding(known: Flags, both: Iterable[argparse.Namespace]) -> set[str]:
    """Megatron's attributes that make another run where they differ."""
    both = tuple(both)
    kinds = {known.destination(key): kind for key, kind in KINDS.items()}
    of_the_run = {RUN} | ({EVALUATES} if any(map(evaluation_leaves_a_trace, both)) else set())
    # An attribute that the table does not know is taken for one that decides.
    return {name for name in vars(both[0]) if kinds.get(name, RUN) in of_the_run}


def _after_validation(
    differing: list[str],
    deciding: set[str],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    checked: CheckedRecipe,
) -> list[str]:
    """Return those of the keys that differ after Megatron's validation too.

    It fills in what follows from other keys, such as ``ffn-hidden-size``, so that a recipe which
    writes that out is still the same run.
    """
    known = checked.known
    kept = {k: v for k, v in new.items() if known.destination(k) not in differing}
    back = {k: v for k, v in old.items() if known.destination(k) in differing}
    was = checked.arguments_of({**kept, **back})
    if was is None:
        return differing
    changed = {
        name for name in deciding if not _is_same(_get(was, name), _get(checked.arguments, name))
    }
    if not changed:
        return []
    return [name for name in differing if name in changed] or differing


def _of_phases(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """List what differs in the ``tst:`` block, whose phases may be spelled in several ways."""
    # A key that is newer than the run had the value that is its default now.
    old, new = (TSTConfig().as_keys() | (run.get("tst") or {}) for run in (before, now))
    same_phases = _is_same(before.get("phases"), now["phases"])
    passed_over = {"keep-last-checkpoints"} | (set(OF_THE_PHASES) if same_phases else set())
    if _unit(old) == _unit(new):
        passed_over.add("stream-unit-bags")
    found = [
        _difference(f"tst.{key}", old.get(key), new.get(key))
        for key in {**old, **new}
        if key not in passed_over and old.get(key) != new.get(key)
    ]
    if not same_phases:
        fix = "They follow from train-iters and tst"
        found.append(Difference("phases", before.get("phases"), now["phases"], fix))
    return found


def _unit(tst: Mapping[str, Any]) -> int | None:
    known = {key.replace("-", "_"): value for key, value in tst.items()}
    try:
        return TSTConfig(**known).unit_chunks()
    except TypeError:
        return None  # of a version that had other keys


def _of_text(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Text is the same under any path, and in the same order with the same weights."""
    found = []
    if before.get(TEXT) != now[TEXT]:
        fix = f"Name the old text: {_override('data', before.get('data'))}"
        found.append(Difference(TEXT, before.get(TEXT), now[TEXT], fix))
    weights = [list((run.get("data") or {}).values()) for run in (before, now)]
    if weights[0] != weights[1]:
        fix = "Give each text its old weight, in the old order"
        found.append(Difference("data", before.get("data"), now.get("data"), fix))
    return found


def _is_same(one: Any, other: Any) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, str) and isinstance(other, str) and one != other:
        # A file under another path.
        return os.path.exists(one) and os.path.realpath(one) == os.path.realpath(other)
    return bool(one == other)


def _plain(value: Any) -> Any:
    """Turn a list of one into its entry: Megatron's defaults of keys that take lists are single."""
    if isinstance(value, list | tuple):
        return _plain(value[0]) if len(value) == 1 else [_plain(entry) for entry in value]
    return value


def _get(values: argparse.Namespace, name: str) -> Any:
    value = getattr(values, name, None)
    filled_in = FILLED_IN_BY_THE_LOOP.get(name)
    return getattr(values, filled_in, None) if value is None and filled_in else value


def _difference_of_key(
    key: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    old: Mapping[str, Any],
    known: Flags,
) -> Difference:
    """Return the difference in a key of Megatron's; each side may have another spelling of it."""
    was, is_now = (
        next((run[k] for k in run if known.destination(k) == known.destination(key)), None)
        for run in (before, now)
    )
    return Difference(key, was, is_now, _fix(_override(key, known.override(old, key))))


def _difference(key: str, was: Any, is_now: Any) -> Difference:
    return Difference(key, was, is_now, _fix(_override(key, was)))


def _fix(override: str) -> str:
    return f"To go on with this run, add {override}; to start another, name another --run-folder"


def _override(key: str, value: Any) -> str:
    """``key=value`` for the command line, as a shell and ``load_recipe`` read it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return shlex.quote(f"{key}={text.removesuffix('...' + chr(10)).strip()}")
