"""The table of docs/layouts.md has what the tests compute."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "megatron"), str(ROOT / "tools")]

import measure_layouts  # noqa: E402
from layouts import LAYOUTS, PHASES, SWITCHES, TESTED, TOLERANCE  # noqa: E402

DOCUMENT = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
GENERATED = DOCUMENT.partition(measure_layouts.BEGIN)[2].partition(measure_layouts.END)[0]


def rows(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in GENERATED.strip().split("\n\n")[table].splitlines()
    ]


def test_table_has_every_layout_in_both_phases():
    _, _, *measured = rows(0)
    wanted = [
        [layout.name, str(layout.num_ranks), str(fields["bag_size"])]
        for layout in TESTED
        for fields in PHASES.values()
    ]
    assert [row[:3] for row in measured] == wanted
    assert all(float(row[4]) <= TOLERANCE for row in measured)


def test_table_has_every_switch_in_every_layout():
    head, _, *measured = rows(1)
    assert head == ["layout", *SWITCHES]
    assert [row[0] for row in measured] == [layout.name for layout in LAYOUTS]
    assert all(float(cell) <= TOLERANCE for row in measured for cell in row[1:])


def test_document_names_the_command_and_the_tests():
    assert "make layouts" in DOCUMENT
    assert measure_layouts.updated(DOCUMENT, GENERATED) == DOCUMENT
    for path in re.findall(r"`(tests/[a-z_/]+\.py)`", DOCUMENT):
        assert (ROOT / path).exists(), path
