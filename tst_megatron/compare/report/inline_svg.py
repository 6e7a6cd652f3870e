"""Make a part of a page from an SVG file of Matplotlib's."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping

from tst_megatron.compare.report.style import PAPER_VARIABLES, Look


def inline(svg: bytes, name: str, looks: Mapping[str, Look], description: str) -> str:
    """Return Matplotlib's SVG as an element of a page.

    Colours become variables of the page, identifiers unique, numbers short, and what would style
    or describe the whole page goes.

    Args:
        svg: a whole file; no name of a run is in it.
        name: makes its identifiers unique.
        looks: whose colours are replaced.
        description: the picture in words, for those who do not see it.
    """
    text = svg.decode("utf-8")
    (box,) = re.findall(r'viewBox="([^"]*)"', text)
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r" ?font-(?:size|family): [^;\"]*;?", "", text)
    text = re.sub(r'(\bd|\bx|\by|transform)="([^"]*)"', _shorter, text)
    text = re.sub(r"\s*\n\s*", "\n", _coloured(text, looks.values())).strip()
    return (
        f'<svg class="chart" viewBox="{box}" role="img" aria-labelledby="{name}-alt">\n'
        f'<desc id="{name}-alt">{html.escape(description)}</desc>\n{text}'
    )


def _shorter(match: re.Match[str]) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda each: f"{float(each[0]):.1f}".replace(".0", ""), match[2])
    return f'{match[1]}="{" ".join(short.split())}"'


def _coloured(text: str, looks: Iterable[Look]) -> str:
    variables = {look.colour: look.variable for look in looks} | PAPER_VARIABLES
    for colour, variable in variables.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
