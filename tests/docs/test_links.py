"""Every relative link of a document leads to a file, and to a heading where it names one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)


def prose(document):
    """A document without blocks of code and without code in a line, which may look like links."""
    return re.sub(r"`[^`]*`", "`", re.sub(r"^ *```.*?^ *```", "", document, flags=re.M | re.S))


def anchors(document):
    """The names that a forge gives to the headings of a document."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", document, flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_of_a_document_lead_somewhere(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8")))
    broken = []
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target) if target else path
        if not file.resolve().exists():
            broken.append(link)
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            broken.append(link)
    assert broken == []


def test_index_of_the_guides_has_every_guide():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in guides if f"| [{name}]({name}) |" not in index} == set()
