"""Draw the losses of a run: one curve for each phase, and where one ends and the other begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tst_megatron.training.record import BAG_LOSS, LM_LOSS, VALIDATION_LOSS, read_metrics


def draw_losses(metrics: Path, picture: Path, *, unigram_entropy_nats: float | None = None) -> None:
    """Write a PNG of a run's bag loss, next-token loss and validation loss over its steps.

    Each bag size has a curve of its own: a bag loss is measured against several tokens at once and
    cannot be compared with a next-token loss, or with that of another bag size.

    Args:
        metrics: a run's ``metrics.jsonl``.
        picture: where the PNG goes.
        unigram_entropy_nats: drawn as a line, if given: what knowing the tokens' frequencies alone
            would reach.
    """
    # Imported here: importing pyplot takes a second that only this needs.
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.set_loglevel("WARNING")
    from matplotlib import pyplot

    steps = read_metrics(metrics)
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    colours = itertools.cycle(("tab:orange", "tab:red", "tab:brown", "tab:purple"))
    for label, at, losses in curves(steps):
        colour = "tab:blue" if label == LM_LOSS else next(colours)
        axes.plot(at, losses, color=colour, linewidth=1, label=label)
    validation = read_metrics(metrics, event="validation")
    axes.plot(
        [row["step"] for row in validation],
        [row[VALIDATION_LOSS] for row in validation],
        "o",
        color="tab:green",
        label="next-token loss on held-out text",
    )
    superposition = [row["step"] for row in steps if row["phase"] == "superposition"]
    if superposition:
        axes.axvline(superposition[-1] + 0.5, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            "switch",
            (superposition[-1] + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -14),
            textcoords="offset points",
        )
    if unigram_entropy_nats is not None:
        axes.axhline(
            unigram_entropy_nats, color="grey", linestyle=":", label="unigram entropy of the text"
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats)")
    axes.set_title(f"Losses of both phases (device: {steps[-1]['device']})")
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def curves(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[int], list[float]]]:
    """Label, steps and training losses of each bag size of a run, in order."""
    for bag_size, rows_of_size in itertools.groupby(steps, key=lambda row: row["bag size"]):
        name = BAG_LOSS if bag_size > 1 else LM_LOSS
        rows = [row for row in rows_of_size if row.get(name) is not None]
        label = f"{name}, bags of {bag_size}" if bag_size > 1 else name
        yield label, [row["step"] for row in rows], [row[name] for row in rows]
