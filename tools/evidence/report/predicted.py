"""Set the predictions of the rules beside what became of them."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.pairs import MapPair
from evidence.predictions import Prediction, predictions, signs_before, signs_of
from evidence.report.tables import interval, link, table
from evidence.runs import record_of

HEAD = (
    *("sweep", "steps", "K", "r", "lr", "slope", "price", "positions per parameter"),
    *("first rule", "second rule", "gap (95% interval)"),
)


def predictions_table(found: Sequence[MapPair]) -> str:
    """Return how many predictions of each rule were right, and a row for each pair."""
    made = predictions()
    ended = [(each, pair) for each in made if (pair := each.outcome(found)) is not None]
    known = {each.run for each in made}
    before = [pair for pair in found if not _names(pair) & known]
    second = [(each, pair) for each, pair in ended if each.wins_by_steps is not None]
    first_made_on = [(signs_of(pair).wins, pair) for pair in before]
    second_made_on = [
        (signs_of(pair).wins_by_steps(pair.bag_size), pair)
        for pair in [*before, *(pair for each, pair in ended if each.wins_by_steps is None)]
    ]
    lines = [
        "- First rule, pairs without a prediction, 25 of which it was made on: "
        f"{_score(first_made_on)}",
        f"- First rule, pairs of later: {_score([(each.wins, pair) for each, pair in ended])}",
        "- Second rule, pairs that it did not predict, 31 of which it was made on: "
        f"{_score(second_made_on)}",
        "- Second rule, pairs of later: "
        f"{_score([(bool(each.wins_by_steps), pair) for each, pair in second])}",
        f"- Not trained yet: {len(made) - len(ended)}",
    ]
    rows = table(HEAD, [_row(each, each.outcome(found)) for each in made])
    return "\n".join(lines) + "\n\n" + rows


def _names(pair: MapPair) -> set[str]:
    return {f"{run.parent.name}/{run.name}" for run in pair.runs}


def _score(said: Sequence[tuple[bool, MapPair]]) -> str:
    right = [_is_right(pair, wins) for wins, pair in said]
    is_sure = [pair.low > 0 or pair.high < 0 for _, pair in said]
    sure = [each for each, counts in zip(right, is_sure, strict=True) if counts]
    always = sum(pair.gap < 0 for _, pair in said)
    return (
        f"right in {sum(right)} of {len(right)} (always saying 'wins' in {always}), and in "
        f"{sum(sure)} of the {len(sure)} whose interval excludes 0"
    )


def _is_right(pair: MapPair, wins: bool) -> bool:
    return (pair.gap < 0) == wins


def _row(prediction: Prediction, pair: MapPair | None) -> list[str]:
    signs = signs_before(prediction.baseline, prediction.fraction)
    record = record_of(prediction.run)
    return [
        record.parent.name if pair is None else link(record),
        f"{signs.num_steps:,}",
        str(prediction.bag_size),
        f"{signs.fraction:.2f}",
        f"{signs.learning_rate:g}",
        f"{signs.slope:.2f}",
        f"{signs.price:.3f}",
        f"{signs.positions_per_parameter:.0f}",
        _said(prediction.wins, pair),
        _said(prediction.wins_by_steps, pair),
        "" if pair is None else interval(pair.gap, pair.low, pair.high),
    ]


def _said(wins: bool | None, pair: MapPair | None) -> str:
    """Return what a rule said, bold where it was wrong."""
    if wins is None:
        return ""
    said = "wins" if wins else "loses"
    return said if pair is None or _is_right(pair, wins) else f"**{said}**"
