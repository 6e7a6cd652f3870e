"""Draw the charts of a comparison with Matplotlib: each once, as inline SVG and as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tst_megatron.compare.report.inline_svg import inline
from tst_megatron.compare.report.lines import Chart, Line, described
from tst_megatron.compare.report.style import GRID, INK, MUTED, PAPER, Look
from tst_megatron.compare.report.words import shortened, shown

SIZE = (4.8, 3.3)
"""Inches, so that 10.5-point text is still 10 pixels high on a telephone."""
FONT_POINTS = 10.5
PNG_DPI = 200
LEGEND_CHARACTERS = 46
"""Of a name in a picture's legend."""

_WIDTHS = {"run": 0.7, "arm": 2.0, "trunk": 1.3}
_ALPHAS = {"run": 0.5, "arm": 1.0, "trunk": 1.0}
TRUNK_DASHES = (1.2, 1.8)
"""Widths of line and gap; no arm has these."""
SHARE_SHOWN = 0.85
"""Of the losses after the switch, at least; those above are early, and would flatten the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A chart as it is shown."""

    chart: Chart
    svg: str
    """An element for a page, in the colours of the page's variables."""
    png: bytes
    """With a title and a legend, on white."""
    is_cut: bool
    """Whether some losses are above the upper edge."""


def draw(chart: Chart, looks: Mapping[str, Look]) -> Picture:
    """Draw a chart.

    Args:
        chart: what it holds.
        looks: of each arm, by its name.
    """
    with _settings():
        figure = Figure(figsize=SIZE, layout="constrained", facecolor=PAPER)
        axes = figure.subplots()
        is_cut = plot(axes, chart, looks)
        svg = inline(_saved(figure, "svg"), chart.name, looks, described(chart))
        _add_legend(figure, chart, looks)
        png = _saved(figure, "png")
    return Picture(chart=chart, svg=svg, png=png, is_cut=is_cut)


@contextmanager
def _settings() -> Iterator[None]:
    """Draw alike everywhere, whatever a person's own settings of Matplotlib are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page has its own font, with more letters than the pictures' one.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "tst-megatron",
                "font.size": FONT_POINTS,
                "axes.titlesize": FONT_POINTS,
                "axes.labelsize": FONT_POINTS,
                "xtick.labelsize": FONT_POINTS,
                "ytick.labelsize": FONT_POINTS,
                "text.parse_math": False,
                "axes.unicode_minus": True,
            }
        )
        yield


def _saved(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    metadata: dict[str, None] = (
        {"Software": None}
        if kind == "png"
        else dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    figure.savefig(content, format=kind, dpi=PNG_DPI if kind == "png" else 72, metadata=metadata)
    return content.getvalue()


# --- what is drawn -------------------------------------------------------------------------------


def plot(axes: Axes, chart: Chart, looks: Mapping[str, Look]) -> bool:
    """Draw a chart into axes; tell whether some of its losses are above their upper edge."""
    low, high = _shown_range(chart)
    axes.set_ylim(low, high)
    if chart.loss == "gap":
        axes.axhline(0, color=INK, linewidth=1.2, zorder=1.5)
    for mark in chart.marks:
        colour = looks[mark.arms[0]].colour if len(mark.arms) == 1 else MUTED
        axes.axvline(mark.x, color=colour, linewidth=1, dashes=(1, 2), zorder=1.6)
    for band in chart.bands:
        colour = looks[band.arm].colour
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    # Single runs lie under all means.
    for line in sorted(chart.lines, key=lambda line: line.part == "arm"):
        _plot_line(axes, line, looks[line.arm], chart.arms.index(line.arm))
    _plot_bars(axes, chart, looks)
    _label_switch(axes, chart)
    is_cut = any(float(np.max(line.y)) > high for line in chart.lines)
    if is_cut:
        axes.set_title("cut off above", loc="right", color=MUTED)
    _dress(axes, chart)
    return is_cut


def _plot_line(axes: Axes, line: Line, look: Look, number: int) -> None:
    (drawn,) = axes.plot(
        line.x,
        line.y,
        color=look.colour,
        linewidth=_WIDTHS[line.part],
        alpha=_ALPHAS[line.part],
        solid_capstyle="round",
    )
    if line.part == "arm" and look.dashes:
        drawn.set_dashes(look.dashes)
    if line.part == "trunk":
        # Above the line of the trunk itself, and beside the dots of its other branches.
        drawn.set(zorder=3, linestyle=(sum(TRUNK_DASHES) / 2 * (number % 2), TRUNK_DASHES))
    if line.part == "arm":
        drawn.set_marker(look.marker)
        drawn.set_markersize(look.marker_points)
        drawn.set_markeredgecolor(PAPER)
        drawn.set_markeredgewidth(0.7)
        drawn.set_markevery(_places_of_markers(len(line.x)))


def _places_of_markers(num_points: int) -> list[int]:
    """Return about six places of a line, the last among them."""
    return sorted(
        {*np.linspace(0, num_points - 1, min(6, num_points)).round().astype(int).tolist()}
    )


def _plot_bars(axes: Axes, chart: Chart, looks: Mapping[str, Look]) -> None:
    """Draw intervals beside each other, since most are at the same step."""
    beside = 0.018 * max((float(line.x[-1]) for line in chart.lines), default=0.0)
    for number, bar in enumerate(chart.bars, start=1):
        axes.errorbar(
            [bar.x + number * beside],
            [bar.y],
            yerr=[[bar.y - bar.low], [bar.high - bar.y]],
            color=looks[bar.arm].colour,
            linewidth=1.6,
            capsize=3,
            capthick=1.6,
            zorder=4,
        )


def _label_switch(axes: Axes, chart: Chart) -> None:
    if not chart.marks:
        return
    place = chart.marks[-1].x
    is_at_the_end = place > 0.8 * axes.get_xlim()[1]
    axes.annotate(
        "switch",
        (place, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if is_at_the_end else 3, 0),
        textcoords="offset points",
        color=MUTED,
        horizontalalignment="right" if is_at_the_end else "left",
        verticalalignment="bottom",
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )


def _dress(axes: Axes, chart: Chart) -> None:
    axes.set_facecolor("none")
    axes.set_title(chart.y_label, loc="left", color=INK)
    axes.set_xlabel(chart.x_label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, color=MUTED, labelcolor=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.set_xlim(left=0)


def _tick(value: float, _: int) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def _shown_range(chart: Chart) -> tuple[float, float]:
    """Return the lowest and the highest loss that is shown.

    All that is settled is shown, but for its first losses, which fall from far above.
    """
    lines = [line.y for line in chart.lines]
    tops, bottoms = [], [float(np.min(y)) for y in lines]
    for values in chart.settled:
        if len(values):
            tops.append(float(np.quantile(values, SHARE_SHOWN)))
            if chart.loss == "gap":
                bottoms.append(0.0)
    for bar in chart.bars:
        tops.append(bar.high)
        bottoms.append(bar.low)
    highest = max(float(np.max(y)) for y in lines)
    low = min(bottoms)
    high = max(tops, default=highest)
    high = max(high, 0.0) if chart.loss == "gap" else high
    for band in chart.bands:
        # A band of two seeds may be many times as high as all that its line does.
        low = min(low, max(float(np.min(band.low)), low - (high - low) / 2))
    # What would hardly be cut is shown.
    if highest - low <= 1.6 * (high - low):
        high = highest
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin


def _add_legend(figure: Figure, chart: Chart, looks: Mapping[str, Look]) -> None:
    """Add to a picture what the page says beside it: its title, and which line is whose."""
    handles = [_handle(looks[arm]) for arm in chart.arms]
    names = [shortened(shown(arm), LEGEND_CHARACTERS) for arm in chart.arms]
    if any(line.part == "trunk" for line in chart.lines):
        handles.append(Line2D([], [], color=MUTED, linewidth=_WIDTHS["trunk"], dashes=TRUNK_DASHES))
        names.append("trained by the trunk")
    is_short = all(len(name) <= LEGEND_CHARACTERS // 2 - 2 for name in names)
    legend = figure.legend(
        handles,
        # A name that begins with a low line would be left out.
        ["-"] * len(names),
        loc="outside lower left",
        ncols=2 if is_short else 1,
        frameon=False,
        handlelength=3,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
        text.set_color(INK)
    figure.suptitle(
        shortened(chart.title, 52), x=0.01, ha="left", color=INK, fontsize=FONT_POINTS + 1.5
    )
    rows = -(-len(names) // (2 if is_short else 1))
    figure.set_size_inches(SIZE[0], SIZE[1] + 0.35 + 0.23 * rows)


def _handle(look: Look) -> Line2D:
    line = Line2D([], [], color=look.colour, linewidth=2, marker=look.marker)
    line.set(markersize=look.marker_points, markeredgecolor=PAPER)
    if look.dashes:
        line.set_dashes(look.dashes)
    return line
