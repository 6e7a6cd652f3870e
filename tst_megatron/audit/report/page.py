"""One HTML page that shows an audit, without a network, a script or a file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tst_megatron.audit.report import story
from tst_megatron.audit.report.tables import sheets
from tst_megatron.audit.results import Audit
from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.compare.report import markup
from tst_megatron.compare.report.words import shown
from tst_megatron.system.files import write_beside


def check_page(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a place at which no page can be written, before any work.

    Args:
        path: of the page.
        inputs: what is read.

    Raises:
        ValueError: something else is there.
    """
    if path.is_dir():
        raise ValueError(f"--html {path}: is a folder. Name a file in it, such as {path}/page.html")
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise ValueError(f"--html {path}: is read by this audit. Name another file")
    check_output(path)


def write_page(audit: Audit, path: Path) -> None:
    """Write an audit as a page, which appears whole; its folder is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, render(audit))


def render(audit: Audit) -> str:
    """Return the page; the same audit gives the same text."""
    parts = _sections(audit)
    links = "".join(
        f'<li><a href="#{name}">{markup.text(title)}</a></li>' for name, title, _ in parts
    )
    header = (
        f"<header>\n<h1>{markup.text(story.title(audit))}</h1>\n"
        f'<p class="muted">{markup.text(story.subtitle(audit))}</p>\n{_pairings(audit)}\n'
        f'{_verdicts(audit)}\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>'
    )
    body = "\n".join(
        f'<section id="{name}">\n<h2>{markup.text(title)}</h2>\n{content}\n</section>'
        for name, title, content in parts
    )
    return markup.page(
        title=story.title(audit), colours="", header=header, body=body, command="audit"
    )


def _pairings(audit: Audit) -> str:
    cards = "".join(
        f'<li class="{"expected" if pairing.is_equal else "matters"}">'
        f'<span class="gravity">{_gravity(pairing.gap, is_equal=pairing.is_equal)}</span>'
        f"<p>{markup.text(shown(pairing.sentence))}</p></li>"
        for pairing in audit.pairings
    )
    if caution := story.caution(audit):
        cards += f'<li class="matters"><span class="gravity">One seed</span><p>{caution}</p></li>'
    return f'<ul class="differences">{cards}</ul>'


def _gravity(gap: float | None, *, is_equal: bool) -> str:
    if is_equal:
        return "At equal loss"
    return "Loss not known" if gap is None else "Not at equal loss"


def _verdicts(audit: Audit) -> str:
    found = story.verdicts(audit)
    cards = "\n".join(
        f'<div class="verdict {_kind(said)}">'
        f'<span class="sign" aria-hidden="true">{said.sign}</span>'
        f'<div><span class="word">{said.word}</span><p>{markup.text(said.sentence)}</p></div></div>'
        for said in found
    )
    return f'<div class="verdicts many">\n{cards}\n</div>'


def _kind(said: story.Said) -> str:
    is_none = said.word == "worse" and " none of " in said.sentence
    return "not-worse" if is_none else said.word.replace(" ", "-")


def _sections(audit: Audit) -> list[tuple[str, str, str]]:
    models, *groups = sheets(audit)
    left = markup.bullets(shown(f"{each.name}: {each.reason}.") for each in audit.left_out)
    found = [
        ("models", "The models", markup.table(models, {})),
        ("probes", "The probes", "".join(markup.table(sheet, {}) for sheet in groups)),
        ("left-out", "Left out", left),
        ("reading", "How to read this page", markup.bullets(story.how_to_read(audit))),
        ("again", "To ask the same again", markup.bullets(_again(audit))),
    ]
    return [section for section in found if section[2]]


def _again(audit: Audit) -> list[str]:
    margins = ", ".join(f"{name} {value:g}" for name, value in audit.margins.items())
    text = "" if audit.text_sha256 is None else f"Text: sha256 {audit.text_sha256}."
    return [
        each
        for each in (
            f"Items: version {audit.items_version}, seed {audit.seed}.",
            f"Margins: {margins}.",
            text,
            *(
                f"{shown(model.name)}: {shown(str(model.folder))}, sha256 {model.fingerprint}."
                for model in audit.models
            ),
        )
        if each
    ]
