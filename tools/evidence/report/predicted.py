"""Set the rule's predictions beside what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.pairs import MapPair
from evidence.predictions import Prediction, predictions, signs_before, signs_of
from evidence.report.tables import interval, link, table
from evidence.runs import record_of

HEAD = (
    *("sweep", "steps", "K", "r", "lr", "slope", "price", "positions per parameter", "predicted"),
    *("gap (95% interval)", "right"),
)


def predictions_table(found: Sequence[MapPair]) -> str:
    """Return a row for each prediction, below how many were right."""
    made = predictions()
    ended = [(each, pair) for each in made if (pair := each.outcome(found)) is not None]
    predicted = {each.run for each in made}
    before = [pair for pair in found if not _names(pair) & predicted]
    return "\n\n".join(
        [
            f"- {_score(before, [signs_of(pair).wins for pair in before])} of the pairs that the "
            "rule was made on\n"
            f"- {_score([pair for _, pair in ended], [each.wins for each, _ in ended])} of the "
            f"pairs that were predicted beforehand; {len(made) - len(ended)} are not trained yet",
            table(HEAD, [_row(each, each.outcome(found)) for each in made]),
        ]
    )


def _names(pair: MapPair) -> set[str]:
    return {f"{run.parent.name}/{run.name}" for run in pair.runs}


def _score(found: Sequence[MapPair], said: Sequence[bool]) -> str:
    right = [_is_right(pair, wins) for pair, wins in zip(found, said, strict=True)]
    sure = [each for each, pair in zip(right, found, strict=True) if pair.low > 0 or pair.high < 0]
    always = sum(pair.gap < 0 for pair in found)
    return (
        f"right in {sum(right)} of {len(right)} (always saying 'wins' in {always}), and in "
        f"{sum(sure)} of the {len(sure)} whose interval excludes 0,"
    )


def _is_right(pair: MapPair, wins: bool) -> bool:
    return (pair.gap < 0) == wins


def _row(prediction: Prediction, pair: MapPair | None) -> list[str]:
    signs = signs_before(prediction.baseline, prediction.fraction)
    record = record_of(prediction.run)
    right = "" if pair is None else "yes" if _is_right(pair, prediction.wins) else "**no**"
    return [
        record.parent.name if pair is None else link(record),
        f"{signs.num_steps:,}",
        str(prediction.bag_size),
        f"{signs.fraction:.2f}",
        f"{signs.learning_rate:g}",
        f"{signs.slope:.2f}",
        f"{signs.price:.3f}",
        f"{signs.positions_per_parameter:.0f}",
        "wins" if prediction.wins else "loses",
        "" if pair is None else interval(pair.gap, pair.low, pair.high),
        right,
    ]
