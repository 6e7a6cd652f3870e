"""Draw docs/bags.svg: raw tokens become bags, bags become latent positions, positions predict bags.

Run: uv run python tools/draw_bags.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
# The same bytes from the same code, so that the picture changes only when the code does.
matplotlib.rcParams["svg.hashsalt"] = "bags"
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

WORDS = "with open ( path ) as file : lines = file . read ( ) ;".split()
BAG_SIZE = 4
COLOURS = ("#cfe3f5", "#fbdcc4", "#d5ecd0", "#eadcf2")


def main() -> None:
    figure, axes = pyplot.subplots(figsize=(11, 3.6), layout="constrained")
    axes.set_xlim(-2.6, 16.1)
    axes.set_ylim(-0.6, 4.3)
    axes.axis("off")
    num_bags = len(WORDS) // BAG_SIZE
    for place, word in enumerate(WORDS):
        box(axes, place, 3.2, 0.94, word, COLOURS[place // BAG_SIZE])
    for bag in range(num_bags):
        middle = bag * BAG_SIZE + (BAG_SIZE - 1) / 2
        is_last = bag == num_bags - 1
        if is_last:
            axes.text(middle + 0.47, 1.75, "look-ahead:\na target only", ha="center", fontsize=10)
            continue
        box(axes, middle - 1.03, 1.6, 3.0, "mean of 4 embeddings", COLOURS[bag])
        for slot in range(BAG_SIZE):
            arrow(axes, bag * BAG_SIZE + slot + 0.47, 3.15, middle + 0.47, 2.36)
        box(axes, middle - 1.03, 0.0, 3.0, f"predicts bag {bag + 2}", COLOURS[bag + 1])
        arrow(axes, middle + 0.47, 1.55, middle + 0.47, 0.76)
    for height, label in ((3.55, "raw tokens"), (1.95, "latent positions"), (0.35, "next bag")):
        axes.text(-0.3, height, label, ha="right", va="center", fontsize=11, weight="bold")
    figure.savefig(
        Path(__file__).parent.parent / "docs" / "bags.svg", metadata={"Date": None, "Creator": None}
    )


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    axes.add_patch(
        pyplot.Rectangle((x, y), width, 0.7, facecolor=colour, edgecolor="#555555", linewidth=0.8)
    )
    axes.text(x + width / 2, y + 0.35, text, ha="center", va="center", fontsize=9.5)


def arrow(axes: Axes, x: float, y: float, to_x: float, to_y: float) -> None:
    axes.annotate(
        "", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "#777777", "lw": 0.9}
    )


if __name__ == "__main__":
    main()
