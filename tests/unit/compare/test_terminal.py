"""A comparison on a terminal, and in a file: plain, and 100 columns wide at most."""

import io
import re

import pytest
from made_comparisons import ALL, two_arms
from rich.cells import cell_len
from rich.console import Console

from tst_megatron.compare.report.tables import sheets
from tst_megatron.compare.report.terminal import show
from tst_megatron.compare.report.words import shown


def in_a_file(comparison):
    file = io.StringIO()
    show(comparison, Console(file=file))
    return file.getvalue()


def on_a_terminal(comparison, width):
    file = io.StringIO()
    show(comparison, Console(file=file, force_terminal=True, width=width))
    return re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())


@pytest.mark.parametrize("name", list(ALL))
def test_file_is_plain_and_no_line_is_longer_than_100_columns(name):
    printed = in_a_file(ALL[name]())
    assert "\x1b" not in printed
    for line in printed.splitlines():
        assert cell_len(line) <= 100 and line == line.rstrip()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_is_filled_up_to_100_columns(width):
    lines = on_a_terminal(two_arms(), width).splitlines()
    longest = max(cell_len(line) for line in lines)
    assert min(width, 100) - 15 < longest <= min(width, 100)


def test_verdict_comes_before_what_differs_and_that_before_the_tables():
    printed = in_a_file(two_arms())
    places = [
        printed.index(text)
        for text in (
            "tst against baseline",
            "2 arms, 6 runs; each arm is compared with baseline.",
            "tst is better than baseline at equal FLOPs",
            "Can these runs be compared?",
            "The same tokenizer: yes (5f0c12ab9d3e, by its hash).",
            "2 differences: 1 matters for the conclusion",
            "raw tokens read: matters for the conclusion",
            "Final validation loss, and gap to baseline",
            "Cost to equal loss",
            "Switch to single tokens",
            "Speed, memory",
            "Downstream tasks",
            "Each run",
            "Notes",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["two arms", "eight arms", "branches"])
def test_every_number_is_there_and_whole(name):
    printed = " ".join(in_a_file(ALL[name]()).split())
    for sheet in sheets(ALL[name]()):
        for row in sheet.rows:
            for cell in row:
                if cell.is_number:
                    assert f" {cell.text} " in f" {printed} ", cell
        assert " ".join(sheet.caption.split()) in printed


def test_names_do_not_act_on_the_terminal():
    comparison = ALL["hostile names"]()
    printed = on_a_terminal(comparison, 100)
    assert "\u202e" not in printed and "\x1b" not in printed
    # Wrapped, perhaps, but with every character.
    assert "".join(shown(comparison.arms[1].name).split()) in "".join(printed.split())
