"""One HTML page that shows a comparison, without a network, a script or a file beside it.

The same pictures are PNG files in a folder beside the page, for use elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.compare.report import markup, story
from tst_megatron.compare.report.charts import Picture, draw
from tst_megatron.compare.report.lines import Chart
from tst_megatron.compare.report.style import Look, looks
from tst_megatron.compare.report.tables import sheets
from tst_megatron.compare.report.views import GAP, charts
from tst_megatron.compare.report.words import joined, shown
from tst_megatron.compare.results import Comparison
from tst_megatron.system.files import write_beside, write_bytes_beside

FILES = "-files"
"""Ends the name of the folder of pictures, before which stands the page's."""


def check_page(path: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse a place at which no page can be written, before any work.

    Args:
        path: of the page.
        inputs: files and folders that are compared.

    Raises:
        ValueError: something else is there.
    """
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise ValueError(f"--html {path}: is one of the runs that are compared. Name another file")
    if path.is_dir():
        raise ValueError(f"--html {path}: is a folder. Name a file in it, such as {path}/page.html")
    files = files_of(path)
    if files.exists() and not files.is_dir():
        raise ValueError(f"--html {path}: {files}, the folder of its pictures, is a file. Move it")
    if files.is_symlink():
        raise ValueError(f"--html {path}: {files}, the folder of its pictures, is a link. Move it")
    check_output(files)


def files_of(path: Path) -> Path:
    """Return the folder of a page's pictures, which lies beside it."""
    return path.with_name(f"{path.stem}{FILES}")


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as a page, and its pictures as PNG files into a folder beside it.

    The page comes last, and appears whole. Pictures of an earlier page of this name that this one
    has not are removed.

    Args:
        comparison: what was found.
        path: of the page; its folder is made where it is not there.

    Returns:
        The folder of the pictures.

    Raises:
        OSError: something cannot be written.
    """
    files = files_of(path)
    page, pictures = render(comparison, files=files.name)
    files.mkdir(parents=True, exist_ok=True)
    for chart in charts(comparison):
        picture = files / f"{chart.name}.png"
        if chart.name in pictures:
            write_bytes_beside(picture, pictures[chart.name])
        else:
            picture.unlink(missing_ok=True)
    write_beside(path, page)
    return files


def render(comparison: Comparison, *, files: str) -> tuple[str, dict[str, bytes]]:
    """Return the page as text, and its pictures as PNG by name; the same input, the same bytes.

    Args:
        comparison: what was found.
        files: name of the folder that will hold the pictures.
    """
    names = [arm.name for arm in comparison.arms]
    look_of = looks(names, comparison.baseline)
    found = charts(comparison)
    pictures = [draw(chart, look_of) for chart in found if chart.lines]
    undrawn = [chart for chart in found if not chart.lines]
    parts = _sections(comparison, pictures, undrawn, look_of, files)
    titles = [(identifier, title) for identifier, title, _ in parts]
    body = "\n".join(
        f'<section id="{identifier}">\n<h2>{markup.text(title)}</h2>\n{content}\n</section>'
        for identifier, title, content in parts
    )
    page = markup.page(
        title=story.title(comparison),
        colours=markup.variables(look_of.values()),
        header=_header(comparison, titles),
        body=body,
        command="compare",
    )
    return page, {picture.chart.name: picture.png for picture in pictures}


def _header(comparison: Comparison, titles: Sequence[tuple[str, str]]) -> str:
    links = "".join(
        f'<li><a href="#{name}">{markup.text(title)}</a></li>' for name, title in titles
    )
    return (
        f"<header>\n<h1>{markup.text(story.title(comparison))}</h1>\n"
        f'<p class="muted">{markup.text(story.subtitle(comparison))}</p>\n'
        f"{_verdicts(comparison)}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>'
    )


def _verdicts(comparison: Comparison) -> str:
    found = story.verdicts(comparison)
    cards = "\n".join(
        f'<div class="verdict {verdict.kind.replace(" ", "-")}">'
        f'<span class="sign" aria-hidden="true">{markup.text(verdict.sign)}</span>'
        f'<div><span class="word">{markup.text(verdict.word)}</span>'
        f"<p>{markup.text(verdict.sentence)}</p></div></div>"
        for verdict in found
    )
    return f'<div class="verdicts{" many" if len(found) > 2 else ""}">\n{cards}\n</div>'


Section = tuple[str, str, str]
"""Identifier, title, content."""


def _sections(
    comparison: Comparison,
    pictures: Sequence[Picture],
    undrawn: Sequence[Chart],
    look_of: Mapping[str, Look],
    files: str,
) -> list[Section]:
    table = {sheet.name: markup.table(sheet, look_of) for sheet in sheets(comparison)}
    figure = {
        picture.chart.name: (picture.chart.subject, _figure(picture, look_of, files))
        for picture in pictures
    }
    drawn = {
        subject: _charts(
            [content for name, (of, content) in figure.items() if of == subject and name != GAP],
            [chart for chart in undrawn if chart.subject == subject],
        )
        for subject in ("validation", "training")
    }
    _, gap = figure.get(GAP, ("", ""))
    losses = f'<div class="beside">\n{gap}\n<div>{table["losses"]}</div>\n</div>\n'
    found = [
        ("comparability", "Can these runs be compared?", _comparability(comparison)),
        ("validation", "Validation loss, next token", drawn["validation"] + losses),
        ("cost", "Cost to equal loss", table.get("equal-loss") or markup.paragraph(_ONE_ARM)),
        ("switch", "Switch, spike and crossing", table.get("switch") or markup.paragraph(_ONE_ARM)),
        ("machine", "Speed, memory and size", table["machine"]),
        ("downstream", "Downstream tasks", table.get("downstream") or markup.paragraph(_NO_TASKS)),
        ("training", "Training losses", drawn["training"]),
        ("runs", "The runs", table["runs"]),
        ("notes", "Notes", markup.bullets(map(shown, comparison.notes))),
        ("reading", "How to read this page", markup.bullets(_HOW_TO_READ)),
    ]
    return [section for section in found if section[2]]


_ONE_ARM = "There is one arm, so there is nothing to compare it with."
_NO_TASKS = "Not recorded: no task of tst-megatron evaluate was found for two arms."
_HOW_TO_READ = (
    "Losses are next-token losses in nats per token, and lower is better. A bag loss is another "
    "quantity: it is measured against several tokens at once, has a chart of its own and is "
    "compared with nothing.",
    "An arm is all runs that differ in nothing but their seed. A thin line is one run, a thick one "
    "an arm: its only run, or the mean where all of its runs have an evaluation. Markers tell "
    "lines apart and show no measurement of their own.",
    "A dotted vertical line is a switch of the bag size. A dotted beginning of a line was trained "
    "by the run's trunk. A shaded band is the 95% interval of a gap at each step, and a bar is the "
    "one of the table.",
    "An axis ends above the losses that are early or before the switch, where the chart says that "
    "it is cut off above. Training losses are running means.",
    "An interval covers what its method names, and nothing else: an interval from held-out blocks "
    "of one seed does not say how another seed would end.",
    "Cost to equal loss is the baseline's divided by the arm's: 1.5 means that the baseline needs "
    "half as much again.",
)


def _comparability(comparison: Comparison) -> str:
    said = [*story.shared(comparison), story.difference_summary(comparison)]
    items = [
        f'<li class="{each.gravity}"><h3>{markup.text(each.what)}</h3>'
        f'<span class="gravity">{markup.text(story.GRAVITIES[each.gravity])}</span>'
        f"<dl>{_values(each)}</dl><p>{markup.text(each.means)}</p></li>"
        for each in story.differences(comparison)
    ]
    listed = f'<ul class="differences">\n{"".join(items)}\n</ul>' if items else ""
    return markup.bullets(said) + listed


def _values(said: story.Said) -> str:
    return "".join(
        f"<dt>{markup.text(arms)}</dt><dd>{markup.text(value)}</dd>" for arms, value in said.values
    )


def _charts(figures: Sequence[str], undrawn: Sequence[Chart]) -> str:
    drawn = "\n".join(figures)
    grid = f'<div class="charts">\n{drawn}\n</div>\n' if figures else ""
    if not undrawn:
        return grid
    titles = "; ".join(shown(chart.title) for chart in undrawn)
    return grid + markup.paragraph(f"Not drawn, since nothing is recorded for it: {titles}.")


def _figure(picture: Picture, look_of: Mapping[str, Look], files: str) -> str:
    chart = picture.chart
    file = f"{quote(files)}/{chart.name}.png"
    missing = joined(map(shown, chart.missing))
    said = f"<p>Not recorded for {markup.text(missing)}.</p>" if missing else ""
    has_trunk = any(line.part == "trunk" for line in chart.lines)
    return (
        f"<figure>\n<figcaption><h3>{markup.text(shown(chart.title))} "
        f'<a class="file" href="{file}">PNG</a></h3>{said}</figcaption>\n'
        f"{picture.svg}\n{markup.legend(chart.arms, look_of, has_trunk=has_trunk)}\n</figure>"
    )
