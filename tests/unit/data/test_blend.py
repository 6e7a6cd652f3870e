from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tst_megatron.data.stream.blend import Blend

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 50).map(float), st.decimals("0.001", "9", places=3).map(float)),
    min_size=1,
    max_size=8,
)


def slowly(weights, num_samples):
    """The definition: sample j of a corpus is due at (j + 1/2) / share, ties to the first."""
    total = sum(int(round(weight * 1000)) for weight in weights)
    due = [
        ((2 * j + 1) * total / (2 * round(weight * 1000)), corpus, j)
        for corpus, weight in enumerate(weights)
        for j in range(num_samples)
    ]
    return [(corpus, j) for _, corpus, j in sorted(due)[:num_samples]]


@given(WEIGHTS, st.integers(0, 80))
def test_samples_are_dealt_as_they_fall_due(weights, num_samples):
    dealt = Blend(weights).deal(0, num_samples)
    # Floating point decides near-ties otherwise, so what is compared is how many each had.
    assert Counter(c for c, _ in dealt).total() == num_samples
    for corpus in range(len(weights)):
        assert [j for c, j in dealt if c == corpus] == list(
            range(sum(c == corpus for c, _ in dealt))
        )
    if all(weight == int(weight) for weight in weights) and len(set(weights)) == 1:
        assert dealt == slowly(weights, num_samples)


@given(WEIGHTS, st.integers(0, 400), st.integers(0, 60))
def test_dealing_may_start_anywhere(weights, first, num_samples):
    blend = Blend(weights)
    assert blend.deal(first, num_samples) == blend.deal(0, first + num_samples)[first:]
    counts = blend.dealt_before(first)
    assert sum(counts) == first
    dealt = blend.deal(0, first)
    assert counts == [sum(c == corpus for c, _ in dealt) for corpus in range(len(weights))]


@given(WEIGHTS, st.integers(0, 10**15))
def test_every_prefix_keeps_the_weights(weights, num_samples):
    for weight, count in zip(weights, Blend(weights).dealt_before(num_samples), strict=True):
        share = weight / sum(weights)
        bound = (1 + share * len(weights)) / 2
        assert abs(count - share * num_samples) <= bound + 1e-9 * num_samples


def test_half_and_half_alternate_and_a_third_comes_every_third_time():
    assert [corpus for corpus, _ in Blend([1, 1]).deal(0, 6)] == [0, 1, 0, 1, 0, 1]
    assert [corpus for corpus, _ in Blend([2, 1]).deal(0, 9)] == [0, 1, 0] * 3


def test_decimal_weights_are_exact_however_far():
    """0.1 + 0.2 + 0.7 is 1: no rounding adds up over two trillion samples."""
    assert Blend([0.1, 0.2, 0.7]).dealt_before(2 * 10**12) == [2 * 10**11, 4 * 10**11, 14 * 10**11]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="there must be one, and each is above 0"):
        Blend(weights)
