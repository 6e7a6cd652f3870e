"""Draw a plan: what runs cost against where they end, and the memory of ranks by part."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.plan import drawn
from tst_megatron.plan.amounts import dollars, short
from tst_megatron.system.files import write_bytes_beside
from tst_megatron.system.machine.disk import check_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    # It imports all that a plan is made with, and the place of a picture is checked before that.
    from tst_megatron.plan.make_plan import Plan

DPI = 130
WIDTH = 10.0
HEIGHT_OF_LOSSES = 6.2
"""Inches, as all sizes here."""
HEIGHT_OF_MEMORY, HEIGHT_OF_A_STAGE = 2.3, 0.3
CHARACTERS_OF_A_LINE = 112
"""Of the recipe's path and the verdict, above the panels."""
MOST_TIMES_THE_LARGEST = 6.0
"""A GPU with more memory than this many times the fullest rank would leave its bars too short."""

# Hues of Okabe and Ito, which survive the usual kinds of colour blindness.
INK, MUTED, GRID = "#1c2024", "#5c6670", "#dfe3e8"
LOOKS = {
    "equal flops": (INK, "o"),
    "TST": ("#d55e00", "D"),
    "equal loss": ("#0072b2", "s"),
    "equal data": ("#008a66", "^"),
    "baseline": ("#b0548c", "v"),
}
"""Colour and marker of each run."""
COLOURS_BETWEEN_STEPS = ("#0072b2", "#56b4e9", "#1b4965", "#8fb8de", "#5c6670", "#b8c4ce")
COLOURS_KEPT = ("#d55e00", "#f0a35e", "#9a7200", "#f0c230", "#b0548c")
COLOUR_AT_WORK = "#008a66"


def check_picture(path: Path) -> None:
    """Refuse a place at which no picture can be written, before any work.

    Raises:
        ValueError: it is a folder, its name does not end in ``.png``, or nothing can be made there.
    """
    if path.is_dir():
        example = path / "plan.png"
        raise ValueError(f"--picture {path}: is a folder. Name a file in it, such as {example}")
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"--picture {path}: a picture is a PNG file, and this name does not end in .png. Name "
            f"it {path.with_suffix('.png')}"
        )
    check_writable(path.parent.resolve() / path.name)


def draw_plan(plan: Plan, path: Path) -> None:
    """Write a PNG of a plan: cost against loss, and below it the memory, where the plan tells it.

    Args:
        plan: that is drawn.
        path: where the PNG goes; replaced whole. Its folder is made where it is not there.

    Raises:
        OSError: it cannot be written.
    """
    bars = drawn.bars_of(plan)
    heights = [HEIGHT_OF_LOSSES]
    if bars is not None:
        heights.append(HEIGHT_OF_MEMORY + HEIGHT_OF_A_STAGE * len(bars.stages))
    with _settings():
        # Imported here: it takes a second that only a picture needs.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained", facecolor="white")
        panels = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        # "K = 6" stays on one line.
        sentence = plan.verdict.sentence.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        above = [
            line
            for text in (plan.recipe, sentence)
            for line in textwrap.wrap(text, CHARACTERS_OF_A_LINE)
        ]
        figure.suptitle("\n".join(above), x=0.01, ha="left", fontsize=10, color=INK)
        _draw_losses(panels[0], plan)
        if bars is not None:
            _draw_memory(panels[1], bars, drawn.memory_title(plan), drawn.gpu_of(plan))
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_beside(path, content.getvalue())


@contextmanager
def _settings() -> Iterator[None]:
    """Draw alike everywhere, whatever a person's own settings of Matplotlib are."""
    import matplotlib

    matplotlib.set_loglevel("WARNING")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Prices and names of files hold dollars, which are no formulas.
        matplotlib.rcParams.update({"text.parse_math": False, "font.size": 10})
        yield


def _dress(panel: SubFigure, title: str) -> Axes:
    """Return the axes of a panel with its title above."""
    panel.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    axes = panel.subplots()
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


# --- cost against loss ----------------------------------------------------------------------------


def _draw_losses(panel: SubFigure, plan: Plan) -> None:
    axes = _dress(panel, drawn.losses_title(plan))
    curve = drawn.curve_of(plan)
    axes.set_xscale("log")
    axes.set_xlim(curve.x[0], curve.x[-1])
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1.5)
    axes.plot(
        *(curve.x, curve.y),
        color=INK,
        linewidth=1.6,
        label=(
            "ordinary runs of more or fewer steps, estimated: Chinchilla's refit, scaled to the "
            "paper's curves"
        ),
    )
    axes.fill_between(
        *(curve.x, curve.y, curve.published),
        color=MUTED,
        alpha=0.2,
        linewidth=0,
        label="between that and the law as it was published",
    )
    for mark in drawn.marks_of(plan):
        _draw_mark(axes, mark, right=curve.x[-1])
    axes.set_ylabel(
        "loss \N{MINUS SIGN} that of the ordinary run\nof as many steps (nats; below 0 is better)"
    )
    axes.set_xlabel(drawn.cost_label(plan))
    unit = drawn.unit_of(plan)
    _label_costs(axes, unit)
    if unit == "dollars":
        _add_hours(axes, drawn.dollars_per_hour(plan), drawn.gpu_of(plan))
    panel.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=9.5)


def _draw_mark(axes: Axes, mark: drawn.Mark, *, right: float) -> None:
    colour, shape = LOOKS[mark.name]
    ranges: dict[str, Any] = {}
    if mark.y_range is not None:
        low, high = mark.y_range
        ranges["yerr"] = [[mark.y - low], [high - mark.y]]
    if mark.x_range is not None:
        first, last = mark.x_range
        ranges["xerr"] = [[mark.x - first], [(right if last is None else last) - mark.x]]
        if last is None or last > right:
            # It goes on beyond the panel.
            axes.plot([right], [mark.y], ">", color=colour, markersize=8, clip_on=False, zorder=4)
    axes.errorbar(
        *([mark.x], [mark.y]),
        **ranges,
        fmt=shape,
        color=colour,
        markersize=8,
        markeredgecolor="white",
        elinewidth=1.6,
        capsize=3,
        capthick=1.6,
        zorder=4,
        label=mark.label,
    )


def _label_costs(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    write = dollars if unit == "dollars" else short
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _add_hours(axes: Axes, price: float, gpu: str) -> None:
    """Add GPU hours as an axis above."""
    above = axes.twiny()
    above.set_xscale("log")
    above.set_xlim(*(end / price for end in axes.get_xlim()))
    above.set_xlabel(f"{gpu} hours", labelpad=7)
    for side in ("bottom", "right"):
        above.spines[side].set_visible(False)
    _label_costs(above, "gpu hours")


# --- memory by part -------------------------------------------------------------------------------


def _draw_memory(panel: SubFigure, bars: drawn.Bars, title: str, gpu: str) -> None:
    axes = _dress(panel, title)
    places = range(len(bars.stages))
    before = [0.0 for _ in places]
    for (name, sizes), colour in zip(bars.parts.items(), _colours(list(bars.parts)), strict=True):
        size = bars.of_fullest.get(name)
        axes.barh(
            *(places, sizes),
            left=before,
            height=0.7,
            color=colour,
            edgecolor="white",
            linewidth=0.6,
            label=name if size is None else f"{name}, {size:,.2f} GB",
        )
        before = [left + size for left, size in zip(before, sizes, strict=True)]
    axes.set_yticks(list(places), bars.stages)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("GB" if len(places) == 1 else "GB; sizes in the legend are the fullest rank's")
    _draw_capacity(axes, bars, gpu)
    panel.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9.5)


def _colours(parts: Sequence[str]) -> Iterator[str]:
    between, kept = itertools.cycle(COLOURS_BETWEEN_STEPS), itertools.cycle(COLOURS_KEPT)
    for name in parts:
        if name.startswith("at work"):
            yield COLOUR_AT_WORK
        else:
            yield next(kept if name.startswith("kept") else between)


def _draw_capacity(axes: Axes, bars: drawn.Bars, gpu: str) -> None:
    """Mark the GPU's memory, and what of it is left to tensors."""
    axes.set_xlim(0, 1.08 * max(bars.largest, bars.capacity or 0.0))
    if bars.capacity is None or bars.room is None:
        return
    if bars.capacity > MOST_TIMES_THE_LARGEST * bars.largest:
        axes.set_xlim(0, 1.25 * bars.largest)
        axes.annotate(
            f"{gpu}: {bars.capacity:g} GB \N{RIGHTWARDS ARROW}",
            (0.995, 0.5),
            xycoords="axes fraction",
            ha="right",
            va="center",
            color=INK,
            fontweight="bold",
        )
        return
    axes.axvline(
        bars.capacity, color=INK, linewidth=2, label=f"memory of {gpu}, {bars.capacity:g} GB"
    )
    axes.axvline(
        bars.room,
        color=INK,
        linewidth=1.2,
        linestyle="--",
        label=f"left to tensors, {bars.room:g} GB",
    )
