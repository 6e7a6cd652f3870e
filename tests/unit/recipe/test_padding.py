"""Padding columns of a vocabulary: their number, their cost, and the divisor that gives none."""

import json
import math

import pytest
import torch

from tst_megatron.model.loss import multi_hot_cross_entropy
from tst_megatron.recipe import padding

VOCABULARIES = (1, 7, 512, 1000, 1001, 4096, 32000, 50257, 128256, 151936, 262144)


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_divisor_pads_nothing_wherever_that_is_possible_and_is_the_largest(vocab_size):
    divisor = padding.divisor_without_padding(vocab_size)
    assert divisor in (1, 2, 4, 8, 16, 32, 64, 128)
    sizes = [size for size in range(1, 9) if vocab_size % size == 0]
    for ranks in range(1, 9):
        rows = padding.padded(vocab_size, divisor, ranks)
        assert rows % ranks == 0
        assert (rows == vocab_size) == (ranks in sizes)
    is_larger_possible = all(
        padding.padded(vocab_size, 2 * divisor, ranks) == vocab_size for ranks in sizes
    )
    assert divisor == 128 or not is_larger_possible


def test_a_wider_layout_counts_where_it_is_the_runs():
    assert padding.divisor_without_padding(151936) == 16
    assert padding.divisor_without_padding(151936, 64) == 2
    assert padding.padded(151936, 2, 64) == 151936


@pytest.mark.parametrize("log_sum_exp", [0.0, 5.0, 11.0])
def test_cost_is_what_zero_columns_add_to_the_loss(log_sum_exp):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 300, generator=generator, dtype=torch.float64)
    logits += log_sum_exp - logits.logsumexp(-1, keepdim=True)
    targets = torch.randint(0, 300, (3, 2), generator=generator)
    wide = torch.cat((logits, logits.new_zeros(3, 128)), dim=-1)
    added = multi_hot_cross_entropy(wide, targets) - multi_hot_cross_entropy(logits, targets)
    expected = torch.full((3,), padding.cost(128, log_sum_exp), dtype=torch.float64)
    torch.testing.assert_close(added.double(), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_said_without_padding():
    assert padding.warning(512, rows=512, divisor=128, ranks=4) is None


def test_new_model_is_told_number_cost_and_divisor():
    said = padding.warning(1000, rows=1024, divisor=128, ranks=2)
    assert "make-vocab-size-divisible-by: 128 x tensor-model-parallel-size 2" in said
    assert "24 columns stand for no token" in said
    assert f"about {math.log(1 + 24 / 1000):.2g} higher (log(1 + 24/1000))" in said
    advised = padding.divisor_without_padding(1000)
    assert f"make-vocab-size-divisible-by: {advised} gives none" in said
    assert "(1, 2, 4, 5, 8)" in said


def test_size_that_no_divisor_fits_is_told_the_fewest_and_the_vocabulary_that_fits():
    said = padding.warning(151936, rows=152064, divisor=128, ranks=3)
    assert "151,936 tokens do not divide by 3, so no divisor gives none; 1 gives the fewest" in said
    assert "vocab-size: 151938" in said and padding.padded(151936, 1, 3) == 151938


def test_rows_that_the_recipe_states_are_named_by_their_key():
    said = padding.warning(600, rows=610, divisor=128, ranks=1)
    assert said.startswith("padded-vocab-size: 610 is more than the vocabulary of 600. 10 columns")


def test_cost_of_an_imported_model_is_that_of_its_own_log_sum_exp(tmp_path):
    padding.write_facts(tmp_path, vocab_size=1000, log_sum_exp=0.0)
    said = padding.warning(1000, rows=1008, divisor=8, ranks=2, pretrained=tmp_path)
    assert f"about {math.log(9):.2g} higher than it is without them (log(1 + 8/Z))" in said
    assert "mean log Z is 0.00" in said
    assert "vocab-size: " not in said


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[1]", "{}", '{"mean-log-sum-exp": null}', '{"mean-log-sum-exp": NaN}'],
)
def test_unknown_log_sum_exp_leaves_the_rule_and_two_examples(tmp_path, content):
    if content is not None:
        (tmp_path / padding.FACTS).write_text(content)
    said = padding.warning(1000, rows=1008, divisor=8, ranks=2, pretrained=tmp_path)
    assert "higher by log(1 + 8/Z)" in said and "which is not known" in said
    assert f"{math.log(9):.2g} for a model with log Z = 0" in said


def test_facts_are_read_as_they_were_written(tmp_path):
    padding.write_facts(tmp_path, vocab_size=7, log_sum_exp=3.25)
    assert padding.known_log_sum_exp(tmp_path) == 3.25
    assert json.loads((tmp_path / padding.FACTS).read_text())["vocab-size"] == 7
