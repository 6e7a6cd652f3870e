"""The page of a comparison in a real browser: on a desktop and a telephone, light and dark.

The screenshots stay in pytest's temporary folder, ``screenshots`` below it.
"""

import json

import pytest
from browser import Browser, find_browser
from made_comparisons import ALL

from tst_megatron.compare.report.page import write_page

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
SHOWN = ("two arms", "hostile names", "nothing known")

TEXTS = """JSON.stringify([...document.querySelectorAll('svg.chart')].map(svg => ({
  box: rectangle(svg),
  alt: document.getElementById(svg.getAttribute('aria-labelledby')).textContent,
  texts: [...svg.querySelectorAll('text')].map(text => ({
    said: text.textContent,
    box: rectangle(text),
    height: parseFloat(getComputedStyle(text).fontSize) * svg.getScreenCTM().a,
  })),
})));
function rectangle(element) {
  const box = element.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium for tests (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name in SHOWN:
        write_page(ALL[name](), folder / f"{name}.html")
    return folder


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    return tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_page_opens_alone_and_fits(browser, pages, screenshots, name, scheme, width):
    path = pages / f"{name}.html"
    browser.open(path, width=width, scheme=scheme)
    browser.screenshot(screenshots / f"{name}-{width}-{scheme}.png")
    assert browser.complaints() == []
    assert [request.rpartition("/")[2] for request in browser.requests()] == [
        path.name.replace(" ", "%20")
    ]
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = browser.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(each => each.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3)"
    )
    assert (paper > 240 and ink < 60) if scheme == "light" else (paper < 40 and ink > 220)


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_are_readable(browser, pages, width):
    browser.open(pages / "two arms.html", width=width)
    charts = json.loads(browser.evaluate(TEXTS))
    assert len(charts) == 7
    for chart in charts:
        left, top, right, bottom = chart["box"]
        assert 300 < right - left <= 580
        assert "tst: from" in chart["alt"]
        for text in chart["texts"]:
            assert 10 <= text["height"] <= 15, text
            x0, y0, x1, y1 = text["box"]
            assert left - 1 <= x0 and x1 <= right + 1 and top - 1 <= y0 and y1 <= bottom + 1, text
        for number, text in enumerate(chart["texts"]):
            for other in chart["texts"][:number]:
                assert not overlap(text["box"], other["box"]), (text, other)


def overlap(one, other):
    """Whether two boxes share more than their edges, which hold no ink."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide > 1 and high > 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_have_the_colours_of_the_scheme(browser, pages, scheme):
    browser.open(pages / "two arms.html", width=1280, scheme=scheme)
    strokes = browser.evaluate(
        "[...document.querySelectorAll('.legend path')].map(each => getComputedStyle(each).stroke)"
    )
    tst = {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}[scheme]
    assert tst in strokes and len(set(strokes)) == 2


def test_wide_tables_scroll_in_their_own_box_on_a_telephone(browser, pages):
    browser.open(pages / "two arms.html", width=390)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".map(each => [each.scrollWidth, each.clientWidth])"
    )
    assert all(width <= 390 for _, width in boxes)
    assert any(content > width for content, width in boxes)
    browser.open(pages / "two arms.html", width=1280)
    beside = browser.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth"
        " > each.clientWidth).map(each => each.getAttribute('aria-label'))"
    )
    assert beside == []


def test_numbers_of_a_column_have_digits_of_one_width_at_the_right(browser, pages):
    browser.open(pages / "two arms.html", width=1280)
    found = browser.evaluate(
        "[...document.querySelectorAll('td.number')].map(each => getComputedStyle(each))"
        ".map(each => [each.textAlign, each.fontVariantNumeric].join())"
    )
    assert set(found) == {"right,tabular-nums"}


def test_page_is_printed_on_white_whatever_the_screen_is(browser, pages, screenshots):
    browser.open(pages / "two arms.html", width=794, scheme="dark", media="print")
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(254, 254, 254)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = browser.call("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 20_000
