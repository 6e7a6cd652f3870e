"""The page of a comparison: well-formed, alone, accessible, and the same for the same input."""

import functools
import hashlib
import html
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_comparisons import ALL, HOSTILE, arm, pair, run, two_arms

from tst_megatron.compare.report import page as pages
from tst_megatron.compare.report.page import check_page, render, write_page
from tst_megatron.compare.report.tables import sheets
from tst_megatron.compare.report.words import shown
from tst_megatron.compare.results import Curve

DRAWN = ("two arms", "nothing known", "hostile names", "not finite")
"""Comparisons of which a page is made here; pictures take time."""
every_page = pytest.mark.parametrize("name", DRAWN)
VOID = {"meta", "link", "br", "img", "input", "hr"}


@functools.cache
def rendered(name):
    return render(ALL[name](), files="page-files")


class Page(HTMLParser):
    """Elements and texts of a page; what is not closed as it was opened is an error."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


@functools.cache
def parsed(name):
    return Page(rendered(name)[0])


@every_page
def test_page_is_well_formed_and_speaks_of_no_network(name):
    text, page = rendered(name)[0], parsed(name)
    assert text.startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}] and len(page.named("h1")) == 1
    assert "http" not in text.lower().replace("http-equiv", "") and "@import" not in text
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "base", "form"}
    for tag, attributes, _ in page.elements:
        assert "src" not in attributes and "srcset" not in attributes
        assert not [each for each in attributes if each.startswith("on")], (tag, attributes)
        target = attributes.get("href", "#")
        assert target.startswith(("#", "page-files/")), target
        assert tag != "use" or target.startswith("#")
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


@every_page
def test_identifiers_are_unique_and_every_reference_leads_to_one(name):
    page = parsed(name)
    known = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(known) == len(set(known))
    used = set(re.findall(r"url\(#([^)]*)\)", rendered(name)[0]))
    for _, attributes, _ in page.elements:
        used.update(attributes.get("aria-labelledby", "").split())
        if attributes.get("href", "").startswith("#"):
            used.add(attributes["href"][1:])
    assert used and used <= set(known)


@every_page
def test_pictures_have_words_and_tables_have_heads(name):
    page = parsed(name)
    charts = [each for each in page.named("svg") if each.get("class") == "chart"]
    assert charts and all(each["role"] == "img" and each["aria-labelledby"] for each in charts)
    assert len(page.named("desc")) == len(charts) == len(page.named("figure"))
    assert all(
        each.get("aria-hidden") == "true"
        for each in page.named("svg")
        if each.get("class") != "chart"
    )
    tables = page.named("table")
    assert len(tables) == len(page.named("caption")) == len(sheets(ALL[name]()))
    assert {each.get("scope") for each in page.named("th")} == {"col", "row"}
    for found in page.named("div"):
        if found.get("class") == "scroll":
            assert found["role"] == "region" and found["aria-label"] and found["tabindex"] == "0"


@every_page
def test_every_number_and_unit_of_the_tables_is_on_the_page(name):
    text = parsed(name).text.replace("\u2212", "-")
    for sheet in sheets(ALL[name]()):
        assert " ".join(sheet.caption.split()) in text
        for column in sheet.columns:
            assert f"{column.head} {column.unit}".strip() in text
        for cell in (cell for row in sheet.rows for cell in row):
            assert cell.text in text and cell.detail in text
        for note in sheet.notes:
            assert " ".join(note.split()) in text


def test_page_says_the_verdict_first_and_then_what_differs():
    text = parsed("two arms").text
    places = [
        # A link above names each section too.
        text.rindex(said)
        for said in (
            two_arms().pairs[0].sentence,
            "The same tokenizer: yes (5f0c12ab9d3e, by its hash).",
            "At equal FLOPs the arm with bags reads more text",
            "Validation loss over optimizer steps",
            "Final validation loss, and gap to baseline",
            "Cost to equal loss: what baseline needs",
            "Training loss of bags",
            "How to read this page",
        )
    ]
    assert places == sorted(places)


def test_names_from_folders_are_text():
    text, page = rendered("hostile names")[0], parsed("hostile names")
    assert page.text.count(shown(HOSTILE)) > 20
    assert not page.named("b") and not page.named("script")
    assert html.escape(shown(HOSTILE)) in text and HOSTILE not in text
    assert "\x1b" not in text and "\u202e" not in text


def test_what_is_not_recorded_is_said_instead_of_drawn():
    text = parsed("nothing known").text
    assert "Not drawn, since nothing is recorded for it: Validation loss over raw tokens;" in text
    assert "Not recorded: no task of tst-megatron evaluate was found for two arms." in text
    assert "Not recorded for tst." in parsed("not finite").text
    assert not re.search(r"\bnan\b|\binf\b", parsed("not finite").text, flags=re.IGNORECASE)


def test_one_arm_alone_has_a_page(monkeypatch):
    monkeypatch.setattr(pages, "draw", lambda chart, looks: pytest.fail("no line, no picture"))
    nothing = np.asarray([])
    silent = run("only", "only", training={}, raw_tokens=nothing, flops=nothing, hours=nothing)
    silent = replace(silent, validation=Curve(steps=nothing.astype(np.int64), values=nothing))
    alone = two_arms(
        arms=(arm("only", [silent], final=2.2),), baseline="only", pairs=(), downstream=()
    )
    text = Page(render(alone, files="f")[0]).text
    assert "only is the only arm, so there is nothing to compare it with" in text
    assert text.count("There is one arm, so there is nothing to compare it with.") >= 1


def test_same_input_gives_the_same_bytes_in_another_process(tmp_path):
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from made_comparisons import ALL\n"
        "from tst_megatron.compare.report.page import render\n"
        "page, pictures = render(ALL['nothing known'](), files='page-files')\n"
        "print(hashlib.sha256(page.encode() + b''.join(pictures.values())).hexdigest())"
    )
    here = str(Path(__file__).parent)
    printed = subprocess.run(
        [sys.executable, "-c", program, here],
        env={
            "PYTHONHASHSEED": "7",
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page, pictures = rendered("nothing known")
    wanted = hashlib.sha256(page.encode() + b"".join(pictures.values())).hexdigest()
    assert printed.strip() == wanted


def test_page_of_twenty_long_runs_stays_small(monkeypatch):
    every, seeds = pages.charts, range(1, 11)
    # The chart with most points, and one of those with the evaluations.
    monkeypatch.setattr(
        pages, "charts", lambda comparison: [every(comparison)[at] for at in (0, 5)]
    )
    runs = {
        name: [
            run(f"{name}-{s}", name, seed=s, every=100, num_steps=100_000, bag_size=size)
            for s in seeds
        ]
        for name, size in (("baseline", 1), ("tst", 4))
    }
    arms = (arm("baseline", runs["baseline"], final=2.0), arm("tst", runs["tst"], final=1.8))
    page, pictures = render(two_arms(arms=arms), files="f")
    assert len(pictures) == 2 and "training-next-token-loss" in pictures
    assert len(page) < 400_000 and sum(map(len, pictures.values())) < 800_000


def test_page_and_pictures_are_written_and_old_pictures_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pages,
        "render",
        lambda comparison, files: (f"page with {files}", {"validation-over-steps": b"png"}),
    )
    path = tmp_path / "new" / "of & runs.html"
    files = path.parent / "of & runs-files"
    files.mkdir(parents=True)
    for name in ("training-bag-loss.png", "validation-over-steps.png", "mine.txt"):
        (files / name).write_text("old")
    assert write_page(ALL["one arm alone"](), path) == files
    assert path.read_text() == "page with of & runs-files"
    assert (files / "validation-over-steps.png").read_bytes() == b"png"
    # A picture of an earlier comparison that this one has not would be taken for its own.
    assert {each.name for each in files.iterdir()} == {"validation-over-steps.png", "mine.txt"}


def test_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(picture, content):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(pages, "render", lambda comparison, files: ("new", {PICTURE: b"png"}))
    monkeypatch.setattr(pages, "write_bytes_beside", full)
    with pytest.raises(OSError, match="no space"):
        write_page(ALL["one arm alone"](), path)
    assert path.read_text() == "old"


PICTURE = "validation-over-steps"


def test_links_to_pictures_survive_any_name_of_a_page():
    comparison = two_arms(1, pairs=(pair("tst", gap=None),))
    look = pages.looks([each.name for each in comparison.arms], "baseline")
    (chart,) = (each for each in pages.charts(comparison) if each.name == PICTURE)
    picture = pages.Picture(chart=chart, svg="<svg></svg>", png=b"", is_cut=False)
    figure = pages._figure(picture, look, 'a "b" & <c>-files')
    assert 'href="a%20%22b%22%20%26%20%3Cc%3E-files/validation-over-steps.png"' in figure


def test_page_at_an_impossible_place_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=f"--html {tmp_path}: is a folder. Name a file in it"):
        check_page(tmp_path)
    (tmp_path / "page-files").write_text("")
    with pytest.raises(ValueError, match="the folder of its pictures, is a file. Move it"):
        check_page(tmp_path / "page.html")
    with pytest.raises(ValueError, match="nothing can be made in /proc"):
        check_page(Path("/proc/page.html"))
