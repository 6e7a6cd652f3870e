"""The values of a run's recipe that decide its numbers, spelled alike, and what each is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tst_megatron.compare.results import RecordedRun
from tst_megatron.recipe.keys.kinds import KINDS, LAYOUT, RUN
from tst_megatron.recipe.keys.run_keys import COMPUTING_KEYS, MODEL_KEYS

GIVEN, TEXT = "given by the profile", "training text"
"""Entries of ``resolved.yaml`` (``training/run/identity.py``)."""
_NOT_KEYS = {"profile", "data", "tst", "phases", GIVEN, TEXT}
_OF_THE_PHASES = {"bag-size", "superposition-fraction", "superposition-steps", "schedule"}
_WITHOUT_EFFECT = {"keep-last-checkpoints", "max-epochs"}

_PLACES = re.compile(
    r"(data-path|.*-data-path|.*-file|tokenizer-model|.*-dir|.*args-path|load|save)"
)
"""Keys whose values are paths, which differ between machines. Hashes say what was there."""

SUPERPOSITION, LENGTH, RATE, OPTIMIZER, BATCH, MODEL, ARITHMETIC, CUT, REST = (
    "superposition",
    "length",
    "learning rate",
    "optimizer",
    "batch and sequence",
    "model",
    "arithmetic",
    "layout over ranks",
    "other settings",
)
_ABOUT = (
    (LENGTH, re.compile(r"train-(iters|samples)|phases")),
    (SUPERPOSITION, re.compile(r"tst\..*|bags")),
    (RATE, re.compile(r"lr(-.*)?|min-lr|warmup|decoupled-.*lr")),
    (
        OPTIMIZER,
        re.compile(r"(adam|sgd|muon|lion|optimizer).*|.*weight-decay.*|clip-grad|loss-scale.*"),
    ),
    (BATCH, re.compile(r"(.*-)?batch-size|(.*-)?seq-length|rampup-.*|step-batch-.*")),
    (MODEL, re.compile(r".*vocab.*")),
)


def deciding_values(run: RecordedRun, *, kinds: tuple[str, ...] = (RUN,)) -> dict[str, str]:
    """Return what a run's recipe says that decides its numbers, apart from the seed.

    A key of ours begins with ``tst.``. The phases are ``bags``, such as ``4 for 1,200 steps``.

    Args:
        run: its facts are looked at; a run without a recipe has none.
        kinds: of Megatron's keys (``recipe/keys/kinds.py``).
    """
    recipe = run.facts.get("recipe")
    if not isinstance(recipe, Mapping):
        return {}
    given = recipe.get(GIVEN)
    own = {key: value for key, value in recipe.items() if key not in _NOT_KEYS}
    values = {**(given if isinstance(given, Mapping) else {}), **own}
    is_ours = run.kind == "run folder"
    found = {
        key: plain(value)
        for key, value in values.items()
        if kind_of(key, is_ours=is_ours) in kinds and key != "seed" and not _PLACES.fullmatch(key)
    }
    if RUN in kinds and is_ours:
        tst = recipe.get("tst")
        for key, value in tst.items() if isinstance(tst, Mapping) else ():
            if key not in _OF_THE_PHASES | _WITHOUT_EFFECT:
                found[f"tst.{key}"] = plain(value)
    if RUN in kinds:
        found["bags"] = bags_of(run)
    return found


def bags_of(run: RecordedRun) -> str:
    """Say the superposition phases of a run in words."""
    bags = [f"K={size} for {steps:,} steps" for size, steps in run.phases if size > 1]
    return ", then ".join(bags) or "none"


def kind_of(key: str, *, is_ours: bool) -> str | None:
    """Return the kind of a key, in any of its spellings.

    Args:
        key: with dashes.
        is_ours: a recipe has named it, so that one that the table does not know decides. Otherwise
            it is one of Megatron's attributes, of which most only follow from others: None.
    """
    kind = KINDS.get(key, KINDS.get(f"no-{key}", KINDS.get(key.removeprefix("no-"))))
    return RUN if kind is None and is_ours else kind


def about(key: str) -> str:
    """Return what a key is about, one of the words above."""
    for word, pattern in _ABOUT:
        if pattern.fullmatch(key):
            return word
    spellings = (key, f"no-{key}", key.removeprefix("no-"))
    for word, keys in ((MODEL, MODEL_KEYS), (ARITHMETIC, COMPUTING_KEYS)):
        if any(each in keys for each in spellings):
            return word
    return CUT if kind_of(key, is_ours=False) == LAYOUT else REST


def plain(value: Any) -> str:
    """Spell a value so that equal ones are the same text: ``4e-3``, ``0.004`` and ``'0.004'``."""
    if isinstance(value, list | tuple):
        return plain(value[0]) if len(value) == 1 else f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = str(value)
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text.lower() if text in ("True", "False", "None") else text


def weights_of_texts(recipe: Mapping[str, Any]) -> str | None:
    """Return hashes and weights of the training texts of a recipe, in order; None if unknown."""
    texts, weights = recipe.get(TEXT), recipe.get("data")
    if not isinstance(texts, list) or not isinstance(weights, Mapping):
        return None
    return ", ".join(
        f"{str(text)[:12]} x {plain(weight)}"
        for text, weight in zip(texts, weights.values(), strict=False)
    )
