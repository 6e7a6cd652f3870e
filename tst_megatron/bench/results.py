"""Write the result of a comparison: JSON with every round, a table and a picture."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tst_megatron import __version__
from tst_megatron.bench.profile import table as kernel_table
from tst_megatron.bench.timing import Timing
from tst_megatron.system.files import beside, write_beside
from tst_megatron.system.packages import package_version

PACKAGES = ("tst-megatron", "torch", "triton", "megatron-core", "transformer-engine", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Contenders that computed the same thing."""

    title: str
    """Name of the case, with its sizes."""
    timings: Sequence[Timing]
    notes: dict[str, float | str] = field(default_factory=dict)
    """Numbers that belong to no contender alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A comparison."""

    which: str
    """``loss``, ``embedding``, ``step`` or ``loader``."""
    question: str
    """Question that it answers, for the head of the table."""
    baseline: str
    """The contender whose time is 1."""
    device: dict[str, str]
    rounds: int
    seed: int
    cases: Sequence[Case]
    are_in_turns: bool = True
    """True if each round had every contender; else they ran one after the other."""
    kernels: Sequence[dict[str, Any]] = ()
    """Milliseconds by kernel and contender, if they were taken."""

    def document(self) -> dict[str, Any]:
        """Return all of it, as JSON has it."""
        return {
            "which": self.which,
            "question": self.question,
            "device": self.device,
            "versions": {name: found for name in PACKAGES if (found := version_of(name))},
            "python": sys.version.split()[0],
            "command": shlex.join(["tst-megatron", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "rounds": self.rounds,
            "seed": self.seed,
            "baseline": self.baseline,
            "in turns": self.are_in_turns,
            "cases": [dataclasses.asdict(case) for case in self.cases],
            "kernels": list(self.kernels),
        }


def version_of(package: str) -> str | None:
    """The installed version of a package, or None; this one may run from its folder alone."""
    if package == "tst-megatron":
        return __version__
    return package_version(package)


def contender_version(package: str) -> str:
    """A package and its version, as tables name it."""
    return f"{package} {version_of(package) or '(absent)'}"


def slug(device: dict[str, str]) -> str:
    """The name of a device's folder: ``nvidia-h100-80gb-hbm3``, ``cpu-2-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")


def write(result: Result, folder: Path) -> list[Path]:
    """Write WHICH.json, WHICH.md and WHICH.png; each is replaced completely.

    Args:
        result: what was found.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = result.document()
    paths = [folder / f"{result.which}.{ending}" for ending in ("json", "md", "png")]
    write_beside(paths[0], json.dumps(document, indent=1) + "\n")
    write_beside(paths[1], markdown(document))
    picture = beside(paths[2])
    draw(document, picture)
    picture.replace(paths[2])
    return paths


def markdown(document: dict[str, Any]) -> str:
    """The table of a result, from its JSON."""
    device = ", ".join(f"{key} {value}" for key, value in document["device"].items())
    versions = ", ".join(f"{name} {found}" for name, found in document["versions"].items())
    lines = [
        f"# {document['question']}",
        "",
        f"`{document['command']}`, {document['date']}.",
        f"Device: {device}. Versions: Python {document['python']}, {versions}.",
        f"{document['rounds']} rounds, {'in turns' if document['in turns'] else 'each in a row'}, "
        f"seed {document['seed']}; medians, and from the 20th to the 80th percentile. The ratio "
        f"is to *{document['baseline']}* of the same round.",
    ]
    for case in document["cases"]:
        columns = [column for column in COLUMNS if any(column.of(t) for t in case["timings"])]
        lines += ["", f"## {case['title']}", ""]
        lines += [f"{name}: {value}" for name, value in case["notes"].items()]
        lines += [""] if case["notes"] else []
        lines.append("| " + " | ".join(column.head for column in columns) + " |")
        lines.append("|---" * len(columns) + "|")
        for timing in case["timings"]:
            lines.append("| " + " | ".join(column.of(timing) for column in columns) + " |")
    if document["kernels"]:
        lines += ["", "## Where the time goes", ""]
        lines += [kernel_table(document["kernels"], document["baseline"]).rstrip()]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    of: Callable[[dict[str, Any]], str]
    """The cell of a timing; empty where it has no number."""


def _spread(key: str, scale: float, digits: int) -> Callable[[dict[str, Any]], str]:
    def cell(timing: dict[str, Any]) -> str:
        if timing[key] is None:
            return ""
        median, p20, p80 = (timing[key][part] * scale for part in ("median", "p20", "p80"))
        return f"{median:.{digits}f} ({p20:.{digits}f}-{p80:.{digits}f})"

    return cell


def _number(key: str, scale: float, style: str) -> Callable[[dict[str, Any]], str]:
    return lambda timing: "" if timing[key] is None else format(timing[key] * scale, style)


COLUMNS = (
    _Column("way", lambda timing: timing["name"]),
    _Column("version", lambda timing: timing["version"]),
    _Column("ms", _spread("spread", 1e3, 3)),
    _Column("ratio", _spread("ratio", 1.0, 3)),
    _Column("GB/s", _number("gigabytes_per_second", 1.0, ",.0f")),
    _Column("peak MiB", _number("peak_bytes", 2**-20, ",.0f")),
    _Column("of it new, MiB", _number("extra_bytes", 2**-20, ",.0f")),
    _Column("error", _number("error", 1.0, ".1e")),
    _Column("not measured", lambda timing: timing["failure"] or ""),
)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw each contender's time by that of the baseline, on a logarithmic axis, case by case."""
    from matplotlib.figure import Figure

    cases = [case for case in document["cases"] if any(t["ratio"] for t in case["timings"])]
    num_columns = 1 if len(cases) < 3 else 2
    num_rows = max(1, -(-len(cases) // num_columns))
    tallest = max((len(case["timings"]) for case in cases), default=1)
    size = (7.5 * num_columns, num_rows * (0.9 + 0.24 * tallest) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{document['question']}, {document['device']['name']}", fontsize=11)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for panel, case in zip(panels, cases, strict=False):
        _draw_case(panel, case, document["baseline"])
    for panel in panels[len(cases) :]:
        panel.set_visible(False)
    figure.supxlabel(
        f"time / time of {document['baseline']}; lines: 20th-80th percentile", fontsize=9
    )
    figure.savefig(path, dpi=110, format="png")


def _draw_case(panel: Any, case: dict[str, Any], baseline: str) -> None:
    timings = [timing for timing in case["timings"][::-1] if timing["ratio"]]
    limits = [t["ratio"][end] for t in timings for end in ("p20", "p80")]
    lowest, highest = min(0.5, 0.8 * min(limits)), max(2.0, 1.2 * max(limits))
    panel.set_xscale("log")
    # Room for the numbers on the right.
    panel.set_xlim(lowest, highest * (highest / lowest) ** 0.35)
    panel.axvline(1.0, color="#2a6f97", linewidth=1)
    for place, timing in enumerate(timings):
        ratio, is_baseline = timing["ratio"], timing["name"] == baseline
        colour = "#2a6f97" if is_baseline else "#5f6b76"
        panel.hlines(place, ratio["p20"], ratio["p80"], color=colour, linewidth=2)
        panel.plot(ratio["median"], place, "o", color=colour, markersize=6)
        text = f"{_milliseconds(timing['spread'])}, x{ratio['median']:.2f}"
        panel.annotate(
            text,
            (ratio["p80"], place),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    panel.set_yticks(range(len(timings)), [timing["name"] for timing in timings], fontsize=8)
    panel.set_ylim(-0.7, len(timings) - 0.3)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if lowest <= tick <= highest]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    panel.minorticks_off()
    panel.set_title(case["title"], fontsize=9, loc="left")
    panel.spines[["top", "right"]].set_visible(False)


def _milliseconds(spread: dict[str, float]) -> str:
    milliseconds = spread["median"] * 1e3
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds:.0f} ms"
