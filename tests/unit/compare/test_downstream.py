"""Downstream tasks, paired by question."""

import json
import math
import os
from fractions import Fraction

import pytest
from made_runs import Made

from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.statistics.answers import compare_answers, mcnemar
from tst_megatron.hf.evaluate.answers import answers_file, read_answers, write_answers
from tst_megatron.system.records import Damaged

PLAIN, BAGS = ((1, 1000),), ((4, 300), (1, 700))


# --- statistics ----------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    # Of 10 questions that one alone has right: 2 x (1 + 10 + 45) / 1024.
    assert mcnemar(8, 2) == pytest.approx(2 * 56 / 1024)
    assert mcnemar(2, 8) == mcnemar(8, 2)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0


def test_mcnemar_of_many_questions_is_exact():
    tail = sum(math.comb(2000, k) for k in range(941))
    assert mcnemar(1060, 940) == pytest.approx(float(Fraction(2 * tail, 2**2000)), rel=1e-8)


def test_difference_of_shares_by_hand():
    one, other = "1" * 70 + "0" * 30, "1" * 50 + "0" * 40 + "1" * 10
    paired = compare_answers(one, other)
    assert paired.num_right == (70, 60) and paired.only_right == (20, 10)
    assert paired.difference.value == pytest.approx(0.1)
    # With half a question more of each kind: (20.5 - 10.5) / 102, and its standard error.
    middle, error = 10 / 102, math.sqrt(31 - 100 / 102) / 102
    assert paired.difference.low == pytest.approx(middle - 1.959964 * error)
    assert paired.difference.high == pytest.approx(middle + 1.959964 * error)
    assert paired.p_value == pytest.approx(mcnemar(20, 10))


# --- files ---------------------------------------------------------------------------------------


def samples(right, *, metrics=("acc", "acc_norm")):
    """As lm-eval returns them: one for each question and filter."""
    found = []
    for answer in right:
        values = {metric: float(answer) for metric in metrics}
        found.append({"filter": "none", "metrics": list(metrics), **values})
        found.append({"filter": "strict", "metrics": ["acc"], "acc": 1.0})
    return found


def test_answers_are_written_beside_the_result_and_read_again(tmp_path):
    raw = {"samples": {"piqa": samples("101"), "gone": samples("1")}}
    raw["samples"]["piqa"][0]["metrics"].append("perplexity")
    raw["samples"]["piqa"][0]["perplexity"] = 3.5
    result = tmp_path / "hf-evaluation.json"
    write_answers(result, raw, {"piqa": "abc", "gone": None})
    assert answers_file(result).name == "hf-evaluation.answers.json"
    answers = read_answers(result)
    assert list(answers) == ["piqa"] and answers["piqa"].hash == "abc"
    assert answers["piqa"].right == {"acc": "101", "acc_norm": "101"}


def test_result_without_answers_has_none(tmp_path):
    assert read_answers(tmp_path / "hf-evaluation.json") is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"format": 2, "tasks": {}}',
        '{"format": 1, "tasks": {"a": {"hash": "x"}}}',
        '{"format": 1, "tasks": {"a": {"hash": "x", "right": {"acc": "012"}}}}',
    ],
)
def test_damaged_answers_are_refused(tmp_path, content):
    answers_file(tmp_path / "r.json").write_text(content)
    with pytest.raises(Damaged):
        read_answers(tmp_path / "r.json")


# --- joined --------------------------------------------------------------------------------------


def evaluated(made, answers, *, hashes=None, subtasks=None, name="hf", limit=None):
    """Leave the results of ``evaluate RUN/hf``: task -> answers of its questions."""
    subtasks = subtasks or {}
    below = {child for group in subtasks.values() for child in group}
    result = made.path / f"{name}-evaluation.json"
    tasks = {task: {"subtasks": subtasks.get(task, [])} for task in [*answers, *subtasks]}
    asked_for = [task for task in tasks if task not in below]
    said = {"format": 1, "asked_for": asked_for, "tasks": tasks, "settings": {"limit": limit}}
    result.write_text(json.dumps(said))
    raw = {"samples": {task: samples(right) for task, right in answers.items()}}
    write_answers(result, raw, hashes or dict.fromkeys(answers, "same"))
    return result


@pytest.fixture
def pair(tmp_path):
    return [
        Made(tmp_path / name, phases).validation({500: 3.0, 1000: 2.0})
        for name, phases in (("baseline", PLAIN), ("tst", BAGS))
    ]


def compared(pair):
    return compare_runs([made.path for made in pair])


def test_tasks_of_both_arms_are_paired(pair):
    evaluated(pair[0], {"piqa": "1100", "only-here": "11"})
    evaluated(pair[1], {"piqa": "1011"})
    comparison = compared(pair)
    assert [(each.task, each.metric) for each in comparison.downstream] == [
        ("piqa", "acc"),
        ("piqa", "acc_norm"),
    ]
    found = comparison.downstream[0]
    assert (found.arm, found.baseline, found.num_questions) == ("tst", "baseline", 4)
    assert (found.arm_score, found.baseline_score) == (0.75, 0.5)
    assert (found.only_arm_right, found.only_baseline_right) == (2, 1)
    assert found.difference.value == 0.25 and found.p_value == 1.0
    assert not [note for note in comparison.notes if "evaluation" in note]


def test_groups_are_all_their_questions(pair):
    subtasks = {"mmlu": ["mmlu_a", "mmlu_b"], "mmlu_b": ["mmlu_c"]}
    evaluated(pair[0], {"mmlu_a": "10", "mmlu_c": "000"}, subtasks=subtasks)
    evaluated(pair[1], {"mmlu_a": "11", "mmlu_c": "001"}, subtasks=subtasks)
    found = compared(pair).downstream
    assert [each.task for each in found] == ["mmlu", "mmlu"]
    assert (found[0].num_questions, found[0].only_arm_right) == (5, 2)


def test_other_questions_are_not_paired(pair):
    evaluated(pair[0], {"piqa": "11"})
    evaluated(pair[1], {"piqa": "11"}, hashes={"piqa": "other"})
    comparison = compared(pair)
    assert comparison.downstream == []
    assert (
        "piqa: tst and baseline were asked other questions, so it is left out" in comparison.notes
    )


def test_results_of_an_earlier_version_are_said(pair):
    result = evaluated(pair[0], {"piqa": "11"})
    answers_file(result).unlink()
    comparison = compared(pair)
    assert comparison.downstream == []
    assert f"{result}: an earlier version wrote it and kept no answers" in comparison.notes[-1]


def test_newest_result_counts_and_trials_are_said(pair):
    old = evaluated(pair[0], {"piqa": "00", "boolq": "11"}, name="old")
    os.utime(old, (1, 1))
    evaluated(pair[0], {"piqa": "11"}, limit=2)
    evaluated(pair[1], {"piqa": "11", "boolq": "11"})
    comparison = compared(pair)
    scores = {each.task: each.baseline_score for each in comparison.downstream}
    assert scores == {"piqa": 1.0, "boolq": 1.0}
    assert "is a trial with the first 2 questions of each task" in " ".join(comparison.notes)


def test_damaged_result_is_left_out_and_said(pair):
    for made in pair:
        result = evaluated(made, {"piqa": "11"})
    result.write_text("{")
    comparison = compared(pair)
    assert comparison.downstream == []
    assert f"{result}: is not JSON" in comparison.notes[-1]


def test_runs_of_one_seed_stand_for_their_arms(tmp_path):
    made = [
        Made(tmp_path / f"{name}-seed{seed}", phases, seed=seed).validation({1000: 2.0})
        for name, phases in (("baseline", PLAIN), ("tst", BAGS))
        for seed in (1, 2)
    ]
    for each, right in zip(made[:1] + made[1:2] + made[3:], ("00", "01", "11"), strict=True):
        evaluated(each, {"piqa": right})
    comparison = compared(made)
    assert comparison.downstream[0].baseline_score == 0.5
    assert "downstream tasks: tst-seed2 stands for tst, and baseline-seed2 for baseline" in (
        comparison.notes
    )
