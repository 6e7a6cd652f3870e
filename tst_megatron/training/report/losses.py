"""Draw the losses of a run: bag loss and next-token loss on panels of their own, over the steps."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.checkpoint.run_files import read_branch
from tst_megatron.system.files import write_bytes_beside
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.metrics_file import (
    BAG_LOSS,
    LM_LOSS,
    NEXT_TOKEN,
    SAID,
    VALIDATION_LOSS,
    read_metrics,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "losses.png"
"""In the ``report/`` of a run."""

BAG_COLOURS = ("tab:orange", "tab:red", "tab:brown", "tab:purple")
MOST_POINTS = 4000
"""Of the raw losses of a curve: more than a picture has columns."""
SMOOTHED_SHARE = 0.04
"""Of a curve's steps that one point of its smoothed line is the mean of."""

Points = tuple[list[int], list[float]]
"""Steps, and a loss of each."""


def draw_losses(metrics: Path, picture: Path, *, unigram_entropy_nats: float | None = None) -> None:
    """Write a PNG of a run's bag loss, next-token loss and validation loss over its steps.

    A bag loss is measured against several tokens at once, so it has a panel of its own above that
    of the next-token losses, and each bag size has a colour of its own. An ordinary run has one
    panel. Raw losses are faint points, and a line is their running mean. What a branch has of its
    trunk stands on grey.

    Args:
        metrics: a run's ``metrics.jsonl``.
        picture: where the PNG goes; replaced whole.
        unigram_entropy_nats: drawn as a line, if given: what knowing the tokens' frequencies alone
            would reach.

    Raises:
        ValueError: no loss is recorded.
        OSError: the metrics cannot be read, or the picture cannot be written.
    """
    steps = read_metrics(metrics)
    of_bags, of_tokens = _by_panel(steps)
    validation = points(read_metrics(metrics, event="validation"), VALIDATION_LOSS)
    has_tokens = of_tokens or validation[0]
    panels = [name for name, has in (("bags", of_bags), ("tokens", has_tokens)) if has]
    if not panels:
        raise ValueError(f"{metrics}: holds no loss to draw")
    # Imported here: it takes a second that only a picture needs.
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.set_loglevel("WARNING")
    figure = Figure(figsize=(9, 3.2 + 2.4 * len(panels)), layout="constrained")
    all_axes = list(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0])
    for name, axes in zip(panels, all_axes, strict=True):
        if name == "bags":
            _draw_curves(axes, of_bags, BAG_COLOURS)
            axes.set_ylabel("bag loss (nats)")
        else:
            _draw_curves(axes, of_tokens, ("tab:blue",))
            axes.set_ylabel("next-token loss (nats)")
            _draw_validation(axes, validation)
        if unigram_entropy_nats is not None:
            axes.axhline(unigram_entropy_nats, color="grey", linestyle=":", label="unigram entropy")
        _fit_height(axes, of_bags if name == "bags" else of_tokens)
        axes.grid(alpha=0.25)
        # Above the panel, where it can hide no curve.
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    _mark_switch(all_axes, steps)
    of_trunk = _mark_trunk(all_axes, steps, metrics.parent)
    all_axes[-1].set_xlabel("optimizer step")
    all_axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    device = next((row["device"] for row in reversed(steps) if "device" in row), "unknown")
    figure.suptitle(
        f"{metrics.resolve().parent.name}, device: {device}\n"
        f"points: single steps; lines: mean over {SMOOTHED_SHARE:.0%} of a curve's steps{of_trunk}",
        # The name of a folder may hold dollars.
        parse_math=False,
    )
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    write_bytes_beside(picture, content.getvalue())


def _by_panel(
    steps: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, Points]], list[tuple[str, Points]]]:
    of_bags: list[tuple[str, Points]] = []
    of_tokens: list[tuple[str, Points]] = []
    for label, name, found in curves(steps):
        (of_bags if name == BAG_LOSS else of_tokens).append((label, found))
    return of_bags, of_tokens


def curves(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Points]]:
    """Label, name in the metrics, and training losses of each bag size of a run, in order."""
    for bag_size, rows in itertools.groupby(steps, key=lambda row: row.get("bag size", 1)):
        name = BAG_LOSS if bag_size > 1 else LM_LOSS
        label = f"{name}, bags of {bag_size}" if bag_size > 1 else NEXT_TOKEN
        if (found := points(rows, name))[0]:
            yield label, name, found


def points(rows: Iterable[Mapping[str, Any]], name: str) -> Points:
    """Return the steps that have a loss, and the loss of each; only finite numbers count."""
    found = [
        (row["step"], float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    return [step for step, _ in found], [loss for _, loss in found]


def smoothed(losses: Sequence[float], width: int) -> list[float]:
    """Return the running mean over ``width`` losses around each, and over fewer at both ends."""
    sums = [0.0, *itertools.accumulate(losses)]
    half = width // 2
    means = []
    for at in range(len(losses)):
        # At the beginning as many on either side, for there a loss falls fast; at the end it
        # hardly falls, and one loss alone would be noise.
        first, last = max(0, at - half), min(at + min(half, at), len(losses) - 1)
        means.append((sums[last + 1] - sums[first]) / (last + 1 - first))
    return means


def _draw_curves(axes: Axes, found: list[tuple[str, Points]], colours: Sequence[str]) -> None:
    for (label, (steps, losses)), colour in zip(found, itertools.cycle(colours), strict=False):
        width = int(len(losses) * SMOOTHED_SHARE) | 1
        stride = math.ceil(len(losses) / MOST_POINTS)
        alpha = 0.35 if len(losses) < 1000 else 0.15
        axes.scatter(
            steps[::stride], losses[::stride], s=7, color=colour, alpha=alpha, linewidths=0
        )
        line = smoothed(losses, width)
        axes.plot(steps[::stride], line[::stride], color=colour, linewidth=1.8, label=label)


def _draw_validation(axes: Axes, validation: Points) -> None:
    if validation[0]:
        label = f"{SAID[VALIDATION_LOSS]} (next token, held-out text)"
        axes.plot(*validation, "o", color="tab:green", markersize=5, label=label, zorder=3)


def _fit_height(axes: Axes, found: list[tuple[str, Points]]) -> None:
    """Show all lines and held-out points, and all but the rarest raw losses, which are spikes."""
    import numpy

    lines = (numpy.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines())
    seen = [float(y) for line in lines for y in line]
    for _, (_, losses) in found:
        rare = len(losses) // 200
        seen += sorted(losses)[rare : len(losses) - rare]
    margin = 0.05 * (max(seen) - min(seen)) or 0.5
    axes.set_ylim(min(seen) - margin, max(seen) + margin)


def _mark_switch(all_axes: Sequence[Axes], steps: Sequence[Mapping[str, Any]]) -> None:
    before = [row["step"] for row in steps if row.get("bag size", 1) > 1]
    if not before or before[-1] == steps[-1]["step"]:
        return
    for axes in all_axes:
        axes.axvline(before[-1] + 0.5, color="black", linestyle="--", linewidth=1)
    all_axes[0].annotate(
        f"switch after step {before[-1]:,}",
        (before[-1] + 0.5, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
    )


def _mark_trunk(all_axes: Sequence[Axes], steps: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Put a grey band behind the steps that a branch's trunk has made, and say what it is."""
    branch = None
    with contextlib.suppress(Damaged):
        branch = read_branch(folder)
    if branch is None or not steps:
        return ""
    for axes in all_axes:
        first, end = steps[0]["step"] - 0.5, branch.step + 0.5
        axes.axvspan(first, end, color="black", alpha=0.08, linewidth=0, zorder=0)
    return f"\non grey: steps of {branch.trunk_name}, up to {branch.step:,}"
