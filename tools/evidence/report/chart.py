"""Draw the map: the gap of every pair over what its baseline would pay for the steps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from evidence.pairs import MapPair
from tst_megatron.compare.report.style import ARMS, GRID, INK, MARKERS, MUTED, PAPER

SIZE = (9.0, 4.2)
DPI = 130


def draw_map(pairs: Sequence[MapPair], made_from: str) -> bytes:
    """Return a PNG with the gap over positions per parameter, and over the price of the steps.

    Args:
        pairs: at least one.
        made_from: kept in the file as its source.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED}
        )
        figure = Figure(figsize=SIZE, layout="constrained", facecolor=PAPER)
        axes = figure.subplots(1, 2, sharey=True)
        sizes = sorted({pair.bag_size for pair in pairs})
        for number, size in enumerate(sizes):
            chosen = [pair for pair in pairs if pair.bag_size == size]
            gaps = np.array([pair.gap for pair in chosen])
            around = np.array([[pair.gap - pair.low, pair.high - pair.gap] for pair in chosen]).T
            look = {"color": ARMS[number][0], "marker": MARKERS[number + 1], "linestyle": "none"}
            look |= {"markersize": 5, "elinewidth": 0.8, "label": f"K = {size}"}
            axes[0].errorbar([p.positions_per_parameter for p in chosen], gaps, around, **look)
            axes[1].errorbar([pair.price for pair in chosen], gaps, around, **look)
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_minor_locator(NullLocator())
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].set_xlabel("latent positions per parameter")
        axes[0].set_ylabel("TST \u2212 baseline, nats per token")
        axes[0].legend(frameon=False)
        axes[1].set_xlabel("price of the steps, nats")
        prices = [0.0, max(pair.price for pair in pairs)]
        axes[1].plot(prices, prices, color=MUTED, linewidth=1, linestyle=":")
        axes[1].annotate(
            "superposition taught nothing",
            (prices[1], prices[1]),
            color=MUTED,
            ha="right",
            va="bottom",
            fontsize=8,
        )
        for each in axes:
            each.axhline(0, color=INK, linewidth=1)
            each.grid(color=GRID, linewidth=0.6)
            each.set_axisbelow(True)
        file = io.BytesIO()
        figure.savefig(
            file, format="png", dpi=DPI, metadata={"Software": None, "Source": made_from}
        )
    return file.getvalue()
