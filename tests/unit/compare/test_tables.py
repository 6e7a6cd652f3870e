"""The tables of a comparison: numbers with units, and words where a number is missing."""

import json
import math
import re

import pytest
from made_comparisons import ALL, HOSTILE, NAN, SWITCH, interval, nothing_known, pair, two_arms

from tst_megatron.compare.report import story, words
from tst_megatron.compare.report.keys import as_keys
from tst_megatron.compare.report.tables import sheets
from tst_megatron.compare.results import Interval

every_comparison = pytest.mark.parametrize("name", list(ALL))


def sheet(comparison, name):
    return next(sheet for sheet in sheets(comparison) if sheet.name == name)


def texts(found):
    return [[(cell.text, cell.detail) for cell in row] for row in found.rows]


@every_comparison
def test_every_column_of_numbers_has_a_unit_and_no_cell_is_blank(name):
    found = sheets(ALL[name]())
    assert {"losses", "machine", "runs"} <= {each.name for each in found}
    for each in found:
        assert each.caption
        for at, column in enumerate(each.columns):
            cells = [row[at] for row in each.rows]
            assert all(cell.text.strip() for cell in cells), (each.name, column.head)
            if any(cell.is_number for cell in cells):
                assert column.unit, (each.name, column.head)
            if column.unit:
                for cell in cells:
                    assert cell.is_number == bool(re.search(r"\d", cell.text)), cell
        assert all(len(row) == len(each.columns) for row in each.rows)


def test_losses_are_those_of_the_comparison_with_their_intervals():
    found = sheet(two_arms(), "losses")
    seeds = "3 runs, seeds 1, 2, 3"
    assert texts(found) == [
        [
            ("baseline", seeds),
            ("8,000", ""),
            ("1.9959", "1.9869 to 2.0049"),
            ("is the baseline", ""),
        ],
        [
            ("tst", seeds),
            ("8,000", ""),
            ("1.7526", "1.7436 to 1.7616"),
            ("-0.2433", "-0.2610 to -0.2256"),
        ],
    ]
    assert found.notes == [
        "Interval of the loss of baseline and tst: t over 3 pairs of seeds.",
        "Interval of the gap of tst: t over 3 pairs of seeds.",
        "Standard deviation of one run's final loss over seeds, for tst: 0.0061 nats (measured "
        "over 3 seeds of each arm).",
    ]


def test_losses_of_different_steps_are_said_to_be_so():
    longer = pair("tst", compared_at=(6000, 8000))
    notes = sheet(two_arms(pairs=(longer,)), "losses").notes
    assert "tst at step 6,000 is compared with baseline at step 8,000." in notes


def test_cost_to_equal_loss_is_a_ratio_with_its_interval():
    (row,) = texts(sheet(two_arms(), "equal-loss"))
    assert row == [
        ("tst", ""),
        ("1.62", "1.51 to 1.73"),
        ("0.94", "0.87 to 1.01"),
        ("1.61", "1.49 to 1.73"),
        ("1.48", "1.31 or more"),
    ]


def test_switch_crossing_and_spike_are_in_steps_and_nats():
    baseline, tst = texts(sheet(two_arms(), "switch"))
    missing = ("no switch", "")
    assert baseline[1:] == [missing, ("is the baseline", ""), missing, missing]
    assert [text for text, _ in tst] == ["tst", f"{SWITCH:,}", "3,012", "1.234", "617"]


def test_numbers_of_the_machine_are_in_the_unit_of_the_head():
    found = sheet(two_arms(), "machine")
    assert [column.unit for column in found.columns] == [
        *("", "thousands raw tokens/s", "TFLOP/s per device", "share, 0-1", "GiB", "1 is even"),
        *("thousands", "hours"),
    ]
    first, second = texts(found)
    assert [text for text, _ in first[1:]] == [
        *("18.12", "0.0317", "0.412", "1.500", "1.023", "214.5", "0.267")
    ]
    assert second[1] == ("29.00", "") and first[6] == ("214.5", "active: 181.8")


def test_answers_to_tasks_have_scores_counts_and_the_p_of_mcnemar():
    (row,) = texts(sheet(two_arms(), "downstream"))
    assert row == [
        ("arc_easy", "acc_norm"),
        ("tst", ""),
        ("0.4135", ""),
        ("0.3891", ""),
        ("+0.0244", "+0.0093 to +0.0395"),
        ("2,376", ""),
        ("203, 145", ""),
        ("0.00217", ""),
    ]


def test_what_is_not_known_is_said_to_be_so():
    comparison = nothing_known()
    for row in texts(sheet(comparison, "machine")):
        assert {text for text, _ in row[1:]} == {"not recorded"}
    losses = texts(sheet(comparison, "losses"))
    assert losses[0] == [
        ("a", "1 run, seed not recorded"),
        ("200", ""),
        ("not recorded", ""),
        ("is the baseline", ""),
    ]
    assert losses[1][3] == ("cannot be compared", "")
    assert {text for text, _ in texts(sheet(comparison, "equal-loss"))[0][1:]} == {"no equal loss"}
    run = texts(sheet(comparison, "runs"))[0]
    assert run[2] == run[5] == ("not recorded", "")
    assert "downstream" not in {each.name for each in sheets(comparison)}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.0, 2.0, "1.00 to 2.00"),
        (-2.0, -1.0, "-2.00 to -1.00"),
        (1.0, math.inf, "1.00 or more"),
        (-math.inf, 2.0, "2.00 or less"),
        (NAN, NAN, "interval not known"),
        (1.0, NAN, "interval not known"),
        (-math.inf, math.inf, "interval not known"),
    ],
)
def test_ends_of_an_interval_in_words(low, high, said):
    assert words.bounds(Interval(value=1.5, low=low, high=high, method=""), 2) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0.000"),
        (0.00217, "0.00217"),
        (0.0317, "0.0317"),
        (1.5, "1.500"),
        (18.123, "18.12"),
        (123456.7, "123,457"),
        (NAN, "not recorded"),
        (math.inf, "unbounded"),
    ],
)
def test_numbers_of_any_size_keep_the_digits_that_count(value, said):
    assert words.significant(value) == said


def test_exponents_are_small_and_their_ten_is_not():
    assert words.power_of([3.5e13]) == (1e12, "10¹²")
    assert words.power_of([]) == (1.0, "")
    assert words.scale_of([2e6, NAN]) == (1e6, "millions")


@pytest.mark.parametrize("most", [5, 8, 46])
def test_shortened_names_keep_both_ends(most):
    short = words.shortened("abcdefghijklmnop", most)
    assert len(short) <= most and short[0] == "a" and short[-1] == "p"


# --- sentences -----------------------------------------------------------------------------------


def test_verdict_is_the_sentence_of_the_pair():
    (verdict,) = story.verdicts(two_arms())
    assert (verdict.word, verdict.arm) == ("better", "tst")
    assert verdict.sentence == two_arms().pairs[0].sentence


def test_one_arm_alone_is_told_what_is_missing():
    (verdict,) = story.verdicts(ALL["one arm alone"]())
    assert verdict.kind == "says nothing" and "only is the only arm" in verdict.sentence


def test_what_is_the_same_is_said_with_how_that_is_known():
    said = story.shared(two_arms())
    assert "The same tokenizer: yes (5f0c12ab9d3e, by its hash)." in said
    assert story.shared(nothing_known()) == [
        "Nothing was shown to be the same in all runs: too little is recorded."
    ]
    alike = two_arms(same={"tokenizer": "by the stream", "text": "by the stream"})
    assert story.shared(alike) == ["The same tokenizer and text: yes (by the stream)."]


def test_gravest_difference_comes_first_and_equal_values_stand_together():
    forbids = nothing_known().differences[0]
    found = story.differences(two_arms(differences=(*two_arms().differences, forbids)))
    assert [each.gravity for each in found] == ["forbids", "matters", "expected"]
    assert found[0].values == [("a and b", "not recorded")]
    said = story.difference_summary(two_arms())
    assert said == "2 differences: 1 matters for the conclusion and 1 is what is compared."
    (one,) = (each for each in two_arms().differences if each.gravity == "expected")
    said = story.difference_summary(two_arms(differences=(one,)))
    assert said == "One difference: it is what is compared."


# --- JSON ----------------------------------------------------------------------------------------


@every_comparison
def test_json_has_no_nan_and_the_keys_that_scripts_rely_on(name):
    text = json.dumps(as_keys(ALL[name]()), allow_nan=False)
    found = json.loads(text)
    assert list(found) == [
        *("format", "baseline", "arms", "differences", "pairs", "downstream", "notes", "same")
    ]
    assert list(found["arms"][0]) == [
        *("name", "runs", "final step", "final loss", "spike", "numbers")
    ]
    for each in found["pairs"]:
        assert list(each) == [
            *("arm", "baseline", "compared at", "gap", "run noise", "run noise source"),
            *("crossing step", "equal loss", "equal loss said", "verdict", "sentence"),
        ]
    assert text == json.dumps(as_keys(ALL[name]()), allow_nan=False)


def test_json_holds_the_numbers_themselves_and_null_for_what_is_no_number():
    found = as_keys(two_arms())
    assert found["pairs"][0]["gap"]["value"] == interval(-0.2433).value
    assert found["pairs"][0]["equal loss"]["hours"]["high"] is None
    run = found["arms"][1]["runs"][0]
    assert run["validation"]["steps"][:2] == [250, 500] and run["path"] == "/runs/tst-1"
    assert run["phases"] == [[4, SWITCH], [1, 5600]]
    lost = as_keys(ALL["not finite"]())["arms"][1]
    assert lost["final loss"] == {"value": None, "low": None, "high": None, "method": ""}
    assert lost["runs"][0]["facts"] == {"learning rate": None, "path": "x", "shape": [1, 2]}


def test_json_keeps_names_as_they_are():
    assert as_keys(ALL["hostile names"]())["arms"][1]["name"] == HOSTILE
