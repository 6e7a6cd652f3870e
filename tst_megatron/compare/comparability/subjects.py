"""What makes losses comparable: tokenizer, texts, their order, model and device of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tst_megatron.compare.comparability.settings import plain, weights_of_texts
from tst_megatron.compare.results import RecordedRun

Gravity = Literal["expected", "matters", "forbids"]
ORDER = "order of the text"
_DIGITS = 12
"""Of a hash that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One thing that arms have in common, or not."""

    what: str
    value: Callable[[RecordedRun], str | None]
    """Of a run, for people; None where it is not recorded."""
    gravity: Gravity
    meaning: str
    if_unknown: str | None = None
    """What it means that some run does not record it; None if that goes without saying."""
    known_by: str = ""
    """How it is known that all have the same, in words."""


def _fact(run: RecordedRun, *names: str) -> Any:
    found: Any = run.facts
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _tokenizer(run: RecordedRun) -> str | None:
    sha256 = _fact(run, "tokenizer")
    return str(sha256)[:_DIGITS] if sha256 else None


def _held_out_text(run: RecordedRun) -> str | None:
    sha256 = _fact(run, "held-out", "validation", "sha256")
    if isinstance(sha256, list):
        return ", ".join(str(each)[:_DIGITS] for each in sha256) or None
    return str(sha256)[:_DIGITS] if sha256 else None


def held_out_size(run: RecordedRun) -> tuple[int, int] | None:
    """Return the number of held-out sequences of an evaluation and their positions, if known."""
    number = _fact(run, "held-out", "validation", "sequences")
    length = _fact(run, "held-out", "validation", "latent positions")
    if not isinstance(number, int) or not isinstance(length, int):
        recipe = run.facts.get("recipe", {})
        try:
            batch = recipe.get("eval-global-batch-size") or recipe["global-batch-size"]
            # Megatron's arguments are texts in its event files.
            number = int(recipe["eval-iters"]) * int(batch)
            length = int(recipe["seq-length"])
        except (KeyError, TypeError, ValueError):
            return None
    return number, length


def _held_out_positions(run: RecordedRun) -> str | None:
    size = held_out_size(run)
    if size is None:
        return None
    said = f"{size[0]:,} sequences of {size[1]:,} positions"
    weights = _fact(run, "held-out", "validation", "weights")
    if isinstance(weights, list) and len(weights) > 1:
        said += f", texts by weights of {', '.join(map(plain, weights))}"
    if _fact(run, "held-out", "validation", "eod-mask-loss"):
        said += ", without ends of documents"
    return said


def _training_text(run: RecordedRun) -> str | None:
    recipe = run.facts.get("recipe")
    return weights_of_texts(recipe) if isinstance(recipe, Mapping) else None


def _order(run: RecordedRun) -> str | None:
    stream = run.facts.get("stream")
    if not isinstance(stream, Mapping) or "order version" not in stream:
        return None
    unit, length = stream.get("tst.stream-unit-bags"), stream.get("seq-length")
    return (
        f"order version {stream['order version']}, units of {unit} x {length} tokens, "
        f"{stream.get('global-batch-size')} samples a step"
    )


def _parameters(run: RecordedRun) -> str | None:
    total, active = (run.numbers.get(name) for name in ("parameters", "active parameters"))
    if not total:
        return None
    return f"{total:,.0f}" + (f", {active:,.0f} active" if active and active != total else "")


def _device(run: RecordedRun) -> str | None:
    return None if run.device == "unknown" else run.device


def _trunk(run: RecordedRun) -> str:
    return "none" if run.trunk is None else f"{run.trunk[0]}, {run.trunk[1]:,} steps"


SUBJECTS = (
    Subject(
        what="tokenizer",
        value=_tokenizer,
        gravity="forbids",
        meaning="Losses per token of different tokens cannot be compared, so no gap is given.",
        if_unknown="Losses can be compared only if both have one tokenizer, which is not shown.",
        known_by="by its hash",
    ),
    Subject(
        what="held-out text",
        value=_held_out_text,
        gravity="forbids",
        meaning="Losses on different texts cannot be compared, so no gap is given.",
        if_unknown="Losses can be compared only if they are of the same text, which is not shown.",
        known_by="by the hash of its tokens",
    ),
    Subject(
        what="held-out positions",
        value=_held_out_positions,
        gravity="matters",
        meaning="Losses are of other places or contexts, so they cannot be paired by sequence.",
        if_unknown="How much text an evaluation reads is not known.",
        known_by="by the size of an evaluation",
    ),
    Subject(
        what="training text",
        value=_training_text,
        gravity="matters",
        meaning="The runs learn from different text, so the gap is not the method's alone.",
        if_unknown="Whether the runs learn from the same text is not shown.",
        known_by="by hashes and weights",
    ),
    Subject(
        what=ORDER,
        value=_order,
        gravity="matters",
        meaning="The runs read their text in different orders, which adds noise to the gap.",
        if_unknown="Whether the runs read the text in the same order is not shown.",
        known_by="by the stream",
    ),
    Subject(
        what="parameters",
        value=_parameters,
        gravity="matters",
        meaning="The models are of different size, so the gap is not the method's alone.",
        known_by="counted",
    ),
    Subject(
        what="device",
        value=_device,
        gravity="matters",
        meaning="Hours, throughput and memory of different devices say nothing of the method.",
        known_by="as recorded",
    ),
    Subject(
        what="trunk",
        value=_trunk,
        gravity="expected",
        meaning="What a branch has of its trunk was trained once, and its hours count in each.",
    ),
)
