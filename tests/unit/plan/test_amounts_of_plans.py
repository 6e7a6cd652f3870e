"""Large numbers are read and written as people write them."""

import pytest

from tst_megatron.plan.amounts import nats, num_bytes, parse_amount, power, short


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("300B", 3e11),
        ("10T", 1e13),
        ("10t", 1e13),
        ("1.5e12", 1.5e12),
        ("1e+12", 1e12),
        ("4,000,000", 4e6),
        (" 2.5 M ", 2.5e6),
        (".5T", 5e11),
        ("7", 7),
    ],
)
def test_amount_is_read_as_it_is_written(text, number):
    assert parse_amount(text, "--tokens-available", "tokens") == pytest.approx(number)


@pytest.mark.parametrize(
    "text", ["many", "", "-3B", "0", "0T", "3X", "1e999", "3 B B", "nan", "inf"]
)
def test_what_is_no_amount_is_refused_with_the_option_and_an_example(text):
    with pytest.raises(ValueError) as caught:
        parse_amount(text, "--tokens-available", "tokens")
    assert f"--tokens-available: {text} is no number of tokens above 0" in str(caught.value)
    assert "300B" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (1.05e12, "1.05T"),
        (253_954_368, "254M"),
        (999.9, "1k"),
        (999_999, "1M"),
        (42, "42"),
        (0, "0"),
    ],
)
def test_amount_is_written_with_a_letter(number, written):
    assert short(number) == written


def test_other_units():
    assert (power(1.2551e22), num_bytes(146.9e9), num_bytes(12)) == ("1.26e22", "147 GB", "12 B")
    assert (nats(-0.0704), nats(0.036)) == ("−0.070", "+0.036")
