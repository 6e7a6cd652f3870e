"""GPU hours come from a peak, an MFU and a price, given or published."""

import dataclasses

import pytest

from tst_megatron.plan.cost.machine import check_hardware, machine_for
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Budget, Hardware, wishes

KNOWN = published()


def a_machine(*, is_moe=True, active=1_196_074_496, **given):
    return machine_for(KNOWN, Hardware(**given), active=active, is_moe=is_moe)


def test_hours_days_and_price_are_flops_over_speed():
    found = a_machine(gpu="H100", num_gpus=8, mfu=0.5, price=2.0)
    flops = 989e12 * 0.5 * 3600 * 100
    assert found.hours(flops) == pytest.approx(100)
    assert found.hours(flops, 0.25) == pytest.approx(200)
    assert found.days(flops) == pytest.approx(100 / 8 / 24)
    assert found.cost(flops) == pytest.approx(200)
    assert (found.mfu_low, found.mfu_high, found.price_low, found.price_high) == (0.5, 0.5, 2, 2)


def test_what_is_not_given_is_published_with_its_range():
    found = a_machine()
    assert (found.name, found.num_gpus) == ("b200", 64)
    assert found.mfu_low < found.mfu < found.mfu_high
    assert found.price_low < found.price == KNOWN.gpus["b200"].price < found.price_high
    assert {"prices", "moe-mfu", "vendor"} <= set(found.sources)


@pytest.mark.parametrize(("active", "mfu"), [(254e6, 0.197), (561e6, 0.255), (7e9, 0.425)])
def test_dense_model_has_the_mfu_of_the_nearest_dense_run(active, mfu):
    assert a_machine(is_moe=False, active=int(active)).mfu == mfu


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gpu": "v100"},
            "--gpu: v100 is none of b200, gb200, h200, h100, h100-pcie, h100-nvl, a100",
        ),
        ({"mfu": 0.0}, "--mfu: 0 is no fraction above 0 and up to 1"),
        ({"mfu": 13.0}, "--mfu: 13 is no fraction"),
        ({"mfu": float("nan")}, "--mfu: nan"),
        ({"price": -1.0}, "--price: -1 is no price"),
        ({"price": float("inf")}, "--price: inf"),
        ({"gpu": "gb200"}, "--price: no price of a gb200 is known"),
        ({"num_gpus": 0}, "--gpus: 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option(given, message):
    with pytest.raises(ValueError, match=message):
        check_hardware(KNOWN, Hardware(**given))


def test_gpu_without_a_published_price_takes_a_given_one():
    assert a_machine(gpu="gb200", price=0.0).cost(1e22) == 0


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Budget)])
def test_limit_without_advice_or_below_one_is_refused(field):
    for budget, is_advised, message in (
        (Budget(**{field: 5.0}), False, "is a limit for --advise"),
        (Budget(**{field: 0.0}), True, "0 is no limit"),
        (Budget(**{field: float("nan")}), True, "nan is no limit"),
    ):
        with pytest.raises(ValueError, match=f"--max-{field}: {message}"):
            wishes(Hardware(), budget, tokens=None, is_advised=is_advised)


def test_wishes_read_the_tokens():
    with pytest.raises(ValueError, match="300 is less than a million tokens"):
        wishes(Hardware(), Budget(), tokens="300", is_advised=False)
    found = wishes(Hardware(), Budget(), tokens="300B", is_advised=False)
    assert (found.tokens_available, found.budget) == (3e11, None)
