"""Say what arms share and in what they differ, and what each difference means for the comparison.

That two runs have read the same text in the same order is shown by the facts of their streams, and
not by the names of files or folders. What an older run or another tool does not record is not taken
to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tst_megatron.compare.comparability.settings import (
    ARITHMETIC,
    BATCH,
    CUT,
    LENGTH,
    MODEL,
    OPTIMIZER,
    RATE,
    REST,
    SUPERPOSITION,
    about,
    deciding_values,
)
from tst_megatron.compare.comparability.subjects import ORDER, SUBJECTS, Gravity, Subject
from tst_megatron.compare.results import Difference, RecordedRun
from tst_megatron.recipe.keys.kinds import LAYOUT, RUN

Arms = Mapping[str, Sequence[RecordedRun]]

UNKNOWN = "not recorded"
MEANINGS: Mapping[str, tuple[Gravity, str]] = {
    SUPERPOSITION: ("expected", "This is the method, and what is compared."),
    LENGTH: (
        "matters",
        "Each run is taken at its own end; inside a run, losses belong to a learning rate that has "
        "not decayed yet.",
    ),
    RATE: (
        "matters",
        "It moves the loss too, so the gap is not the method's alone.",
    ),
    OPTIMIZER: (
        "matters",
        "It moves the loss too, so the gap is not the method's alone.",
    ),
    BATCH: (
        "matters",
        "A step is of another size, so steps are not equal FLOPs, and the text is cut differently.",
    ),
    MODEL: ("matters", "The models differ, so the gap is not the method's alone."),
    ARITHMETIC: (
        "matters",
        "Layers are computed in another way, which moves speed, and may move the loss.",
    ),
    CUT: (
        "matters",
        "Sums are rounded in another order, and hours, throughput and memory depend on it.",
    ),
    REST: ("matters", "Whether this moves the loss is not known."),
}
"""About -> how much a difference weighs, and what it means."""


def compare_facts(arms: Arms) -> tuple[list[Difference], dict[str, str]]:
    """Return in what arms differ, gravest first, and what they share: subject -> how it is known.

    Args:
        arms: name -> runs, which are alike but for their seeds.
    """
    if len(arms) < 2:
        return [], {}
    found, same = [], {}
    silent = {name for name, runs in arms.items() if "recipe" not in runs[0].facts}
    if silent:
        found.append(_of_silent(arms, silent))
    telling = {name: runs for name, runs in arms.items() if name not in silent}
    for subject in SUBJECTS:
        values = {name: subject.value(runs[0]) for name, runs in telling.items()}
        difference = _difference(subject, values)
        if difference is not None:
            found.append(difference)
        elif subject.known_by and not silent and None not in values.values():
            same[subject.what] = f"{next(iter(values.values()))}, {subject.known_by}"
    if of_seeds := list(_of_seeds(arms)):
        # The seed decides the order too.
        same.pop(ORDER, None)
    found += [*of_seeds, *_of_settings(telling), *_of_versions(telling)]
    weight = ["forbids", "matters", "expected"]
    return sorted(found, key=lambda each: weight.index(each.gravity)), same


def forbidding(differences: Sequence[Difference], arm: str, baseline: str) -> Difference | None:
    """Return what forbids to compare the losses of two arms, or None."""
    for each in differences:
        if each.gravity == "forbids" and each.values.get(arm) != each.values.get(baseline):
            return each
    return None


def _difference(subject: Subject, values: Mapping[str, str | None]) -> Difference | None:
    known = {value for value in values.values() if value is not None}
    if len(known) > 1:
        gravity, meaning = subject.gravity, subject.meaning
    elif None in values.values() and subject.if_unknown is not None:
        gravity, meaning = "matters", subject.if_unknown
    else:
        return None
    shown = {name: value or UNKNOWN for name, value in values.items()}
    return Difference(what=subject.what, values=shown, meaning=meaning, gravity=gravity)


def _of_silent(arms: Arms, silent: set[str]) -> Difference:
    return Difference(
        what="all settings",
        values={name: UNKNOWN if name in silent else "recorded" for name in arms},
        meaning="Nothing shows that tokenizer, text and model are the same: only whoever made the "
        "runs can know whether their losses can be compared.",
        gravity="matters",
    )


def _of_seeds(arms: Arms) -> Iterator[Difference]:
    values = {
        name: ", ".join(UNKNOWN if run.seed is None else str(run.seed) for run in runs)
        for name, runs in arms.items()
    }
    if len(set(values.values())) > 1:
        yield Difference(
            what="seeds",
            values=values,
            meaning="Runs of different seeds begin with other weights and read the text in other "
            "orders, so they cannot be paired.",
            gravity="matters",
        )


def _of_settings(arms: Arms) -> Iterator[Difference]:
    """Yield the differences of recipes, one for each thing that their keys are about."""
    if len(arms) < 2:
        return
    values = {name: deciding_values(runs[0], kinds=(RUN, LAYOUT)) for name, runs in arms.items()}
    # Two kinds of record do not name the same keys.
    is_mixed = len({runs[0].kind for runs in arms.values()}) > 1
    named = [set(each) for each in values.values()]
    keys = set.intersection(*named) if is_mixed else set.union(*named)
    by_subject: dict[str, list[str]] = {}
    for key in sorted(keys):
        if len({each.get(key) for each in values.values()}) > 1:
            by_subject.setdefault(about(key), []).append(key)
    for subject, differing in by_subject.items():
        gravity, meaning = MEANINGS[subject]
        shown = {
            name: ", ".join(f"{key}: {each.get(key, 'not set')}" for key in differing)
            for name, each in values.items()
        }
        yield Difference(what=subject, values=shown, meaning=meaning, gravity=gravity)


def _of_versions(arms: Arms) -> Iterator[Difference]:
    values = {}
    for name, runs in arms.items():
        said = runs[0].facts.get("versions")
        said = said if isinstance(said, Mapping) else {}
        values[name] = {k: str(v) for k, v in said.items() if k not in ("device", "world size")}
    known = [each for each in values.values() if each]
    differing = sorted(
        key
        for key in {key for each in known for key in each}
        if len({each.get(key) for each in known}) > 1
    )
    if differing:
        yield Difference(
            what="versions",
            values={
                name: ", ".join(f"{key} {each.get(key, UNKNOWN)}" for key in differing)
                for name, each in values.items()
            },
            meaning="Another version may round differently, which moves a loss as a seed does.",
            gravity="matters",
        )
