"""The verdict: whether compute or text is what a run lacks."""

import dataclasses

import pytest
from made_models import made_10b, point

from tst_megatron.plan.decision.search import best, choices, data_bound_below, leanest
from tst_megatron.plan.decision.verdict import decide, said_of, text_section
from tst_megatron.plan.gain.laws import net_gain
from tst_megatron.plan.published.read import published

KNOWN = published()
AS_PAPER = point(made_10b(bag_size=16, steps=31_250))
"""The paper's K and r in 125,000 steps: 1.05T positions, and 4.98T raw tokens."""


def test_shop_with_300b_tokens_is_data_bound_and_is_told_why():
    found = decide(KNOWN, AS_PAPER, 3e11)
    assert found.kind == "data-bound"
    assert found.recommended is None
    assert "do not use TST" in found.sentence
    assert "The ordinary run alone reads your 300B tokens 3.5 times" in found.sentence
    assert "16.6 times" in found.sentence


def test_shop_with_10t_tokens_is_told_k_and_r():
    found = decide(KNOWN, AS_PAPER, 1e13)
    assert found.kind == "compute-bound"
    assert found.sentence.startswith("Compute-bound: use TST with K = ")
    # The planned schedule stands, since the grids' best is within the noise of two runs.
    assert found.recommended is found.planned or 4 <= found.recommended.point.bag_size <= 8
    assert f"use TST with {said_of(found.recommended.point)}" in found.sentence


@pytest.mark.parametrize("available", [4e12, 2e12, 1.3e12])
def test_between_them_the_schedule_must_read_less(available):
    found = decide(KNOWN, AS_PAPER, available)
    assert found.kind == "data-limited"
    chosen = found.recommended
    assert chosen.pays(KNOWN)
    assert chosen.reading.raw_tokens < found.planned.reading.raw_tokens
    assert "tst.inputs: tokens" in found.sentence


def test_less_text_gives_a_leaner_schedule():
    read = [
        decide(KNOWN, AS_PAPER, u).recommended.reading.raw_tokens for u in (1e13, 1.5e12, 1.2e12)
    ]
    assert read == sorted(read, reverse=True)
    assert read[0] > read[-1]


def test_boundary_is_where_the_verdict_changes():
    limit, mildest = data_bound_below(KNOWN, AS_PAPER)
    assert 1.05e12 < limit < 1.3e12
    assert decide(KNOWN, AS_PAPER, limit * 0.995).kind == "data-bound"
    assert decide(KNOWN, AS_PAPER, limit * 1.005).kind == "data-limited"
    assert mildest.point.superposition_fraction == 0.1
    section = text_section(KNOWN, decide(KNOWN, AS_PAPER, 3e11), 3e11)
    assert "below 1.1" in section.lines[0]
    assert section.values["data-bound below tokens"] == limit


def test_every_law_has_its_row_and_its_boundary():
    section = text_section(KNOWN, decide(KNOWN, AS_PAPER, 3e11), 3e11)
    assert len(section.rows) == len(KNOWN.laws) >= 3
    for row, law in zip(section.rows, KNOWN.laws.values(), strict=True):
        assert law.title in row[0] and row[-1][-1] in "BT"


def test_without_an_amount_of_text_both_limits_are_told():
    found = decide(KNOWN, AS_PAPER, None)
    assert found.kind == "depends on the text"
    for words in ("--tokens-available", "Compute-bound with", "Data-bound below"):
        assert words in found.sentence


def test_short_run_gets_no_recommendation_of_ours():
    few = dataclasses.replace(AS_PAPER, num_steps=600)
    found = decide(KNOWN, few, 1e13)
    assert found.kind == "too short"
    assert "600 steps" in found.sentence and "20,000" in found.sentence


def test_run_so_long_that_the_gain_is_noise_gets_none():
    long = dataclasses.replace(AS_PAPER, num_steps=10**7)
    assert decide(KNOWN, long, 1e16).kind == "no gain"
    assert decide(KNOWN, long, None).kind == "no gain"


def test_best_is_the_best_of_all_by_the_strictest_law():
    for unique in (1e13, 1.3e12):
        found = list(choices(KNOWN, AS_PAPER, unique))
        top = best(KNOWN, AS_PAPER, unique)
        assert top.worst == max(each.worst for each in found)
        for each in found:
            assert each.worst == pytest.approx(
                min(net_gain(law, each.reading, unique) for law in KNOWN.laws.values())
            )


def test_leanest_is_within_noise_and_reads_less():
    top, lean = best(KNOWN, AS_PAPER, 1e13), leanest(KNOWN, AS_PAPER, 1e13)
    assert lean.reading.raw_tokens < top.reading.raw_tokens
    assert lean.worst >= top.worst - KNOWN.noise_nats


def test_schedule_that_loses_is_not_called_short_of_text():
    """A reset at the switch loses, however much text there is."""
    found = decide(KNOWN, dataclasses.replace(AS_PAPER, resets=("reset-embeddings",)), 1e14)
    assert found.kind == "compute-bound"
    assert not found.planned.pays(KNOWN)
    assert f"K = {found.recommended.point.bag_size:g}" in found.sentence
    assert "nats ahead of" in found.sentence


@pytest.mark.parametrize("available", [None, 1e11, 1e13])
def test_output_only_has_no_boundary(available):
    point = dataclasses.replace(AS_PAPER, inputs="tokens")
    found = decide(KNOWN, point, available)
    assert found.sentence.startswith("Output superposition alone")
    assert found.data_bound_below == 0
    assert "none, as it reads no more text" in text_section(KNOWN, found, available).lines[0]


@pytest.mark.parametrize("available", [1.0, 1e3, 1e300])
def test_absurd_amounts_of_text_have_a_verdict(available):
    found = decide(KNOWN, AS_PAPER, available)
    assert found.kind == ("data-bound" if available < 1e12 else "compute-bound")
