import pytest

from tst_megatron.data.text.split import split_of


def splits(held_out_fraction: float, test_fraction: float = 0.0, number: int = 4000) -> list[str]:
    fractions = {"held_out_fraction": held_out_fraction, "test_fraction": test_fraction}
    return [split_of(f"text {n}", **fractions) for n in range(number)]


@pytest.mark.parametrize(("held_out", "test"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2)])
def test_shares_of_the_splits_are_near_the_fractions(held_out: float, test: float) -> None:
    of_text = splits(held_out, test)
    assert of_text.count("validation") / 4000 == pytest.approx(held_out, abs=0.03)
    assert of_text.count("test") / 4000 == pytest.approx(test, abs=0.03)


def test_held_out_documents_stay_held_out_at_a_larger_fraction() -> None:
    smaller, larger = splits(0.1), splits(0.2)
    assert all(b == "validation" for a, b in zip(smaller, larger, strict=True) if a != "train")


def test_test_fraction_takes_from_training_alone() -> None:
    without, with_test = splits(0.1), splits(0.1, 0.1)
    for a, b in zip(without, with_test, strict=True):
        assert (a == "validation") == (b == "validation")
        assert a == "train" if b == "test" else a == b
