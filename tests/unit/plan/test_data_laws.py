"""The laws weigh text that is read again, and give the boundary below which bags do not pay."""

import math

import pytest

from tst_megatron.plan.gain.laws import (
    Reading,
    boundary,
    data_term,
    effective_tokens,
    equal_loss_factor,
    net_gain,
    slope,
)
from tst_megatron.plan.published.read import published

LAWS = published().laws


@pytest.mark.parametrize("factor", [1.0, 1.9])
@pytest.mark.parametrize("unique", [1e6, 1e9, 1e11, 1e13])
def test_no_law_says_more_gain_with_less_text(unique, factor):
    """Output superposition alone (factor 1) too: its price falls where text is read again."""
    reading = Reading(
        positions=4e11, raw_tokens=4e11 * factor, superposition_fraction=0.5, gain=0.02
    )
    for law in LAWS.values():
        assert net_gain(law, reading, unique) <= reading.gain


NOISE = published().noise_nats
READING = Reading(positions=1e12, raw_tokens=2e12, superposition_fraction=0.2, gain=0.04)


def test_laws_are_of_three_sources():
    assert len(LAWS) >= 3
    assert {law.source for law in LAWS.values()} == {"besiroglu", "muennighoff", "prabhudesai"}


def test_constants_are_the_published_ones():
    """Muennighoff's e^7.3049974, and the terms that the two papers give at 100B tokens."""
    assert LAWS["muennighoff"].coefficient == pytest.approx(math.exp(7.3049974), rel=1e-5)
    assert LAWS["muennighoff"].decay_epochs == pytest.approx(15.387756)
    assert LAWS["prabhudesai"].decay_epochs == pytest.approx(31.93)
    assert data_term(LAWS["unique"], 1e11) == pytest.approx(2085.43 / 1e11**0.3658)


@pytest.mark.parametrize("name", LAWS)
def test_text_that_is_read_once_is_worth_itself(name):
    assert effective_tokens(LAWS[name], 5e9, 5e9) == 5e9
    assert effective_tokens(LAWS[name], 4e9, 5e9) == 4e9


@pytest.mark.parametrize("name", LAWS)
def test_repeats_are_worth_something_or_nothing_but_never_more_than_new_text(name):
    worth = [effective_tokens(LAWS[name], epochs * 1e9, 1e9) for epochs in (1, 2, 4, 8, 40)]
    assert worth == sorted(worth)
    assert all(each <= epochs * 1e9 for each, epochs in zip(worth, (1, 2, 4, 8, 40), strict=True))


def test_each_kind_of_repeats_is_what_its_name_says():
    tokens, unique = 10e9, 1e9
    assert effective_tokens(LAWS["unique"], tokens, unique) == 1e9
    assert effective_tokens(LAWS["four-epochs"], tokens, unique) == 4e9
    # Each epoch is worth e^(-1/R*) of the one before, in the limit of small steps.
    decay, step = 15.387756, 1e-4
    slow = 1e9 * (1 + sum(math.exp(-i * step / decay) * step for i in range(int(9 / step))))
    assert effective_tokens(LAWS["muennighoff"], tokens, unique) == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_slope_is_the_derivative(name):
    law, step = LAWS[name], 1e-5
    fall = data_term(law, 1e11) - data_term(law, 1e11 * math.exp(step))
    assert slope(law, 1e11) == pytest.approx(fall / step, rel=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_gain_with_text_to_spare_is_the_estimate(name):
    for unique in (2e12, 1e14, math.inf):
        assert net_gain(LAWS[name], READING, unique) == pytest.approx(0.04)


@pytest.mark.parametrize("name", LAWS)
def test_boundary_is_where_the_gain_is_noise(name):
    limit = boundary(LAWS[name], READING, NOISE)
    assert 0 < limit < READING.raw_tokens
    assert net_gain(LAWS[name], READING, limit) == pytest.approx(NOISE, abs=1e-4)
    assert net_gain(LAWS[name], READING, limit * 0.99) < NOISE
    for times in (1.01, 1.5, 3):
        assert net_gain(LAWS[name], READING, limit * times) > NOISE


def test_strict_laws_ask_for_more_text_than_an_ordinary_run_reads():
    limits = {name: boundary(law, READING, NOISE) for name, law in LAWS.items()}
    assert limits["unique"] > READING.positions
    assert limits["unique"] > limits["four-epochs"] > limits["muennighoff"]


def test_small_gain_never_pays():
    reading = Reading(positions=1e12, raw_tokens=2e12, superposition_fraction=0.2, gain=0.003)
    assert [boundary(law, reading, NOISE) for law in LAWS.values()] == [None] * len(LAWS)


def test_output_only_reads_no_more_and_keeps_its_gain():
    reading = Reading(positions=1e12, raw_tokens=1e12, superposition_fraction=0.3, gain=0.02)
    for law in LAWS.values():
        assert net_gain(law, reading, 1e11) >= 0.02
        assert boundary(law, reading, NOISE) == 0


@pytest.mark.parametrize("name", LAWS)
def test_equal_loss_factor_leads_to_that_loss(name):
    law = LAWS[name]
    factor = equal_loss_factor(law, 1e11, 0.05)
    assert data_term(law, 1e11) - data_term(law, factor * 1e11) == pytest.approx(0.05)
    assert equal_loss_factor(law, 1e11, 9.0) is None
