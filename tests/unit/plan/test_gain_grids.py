"""The gain is read from the paper's grids, and what lies beyond them is named."""

import dataclasses

import pytest

from tst_megatron.plan.gain.grids import Point, estimate, gain_in, point_of, slope_price
from tst_megatron.plan.published.read import published
from tst_megatron.schedule import Schedule, resolve_phases

KNOWN = published()
ON_GRID = Point(
    bag_size=6.0,
    superposition_fraction=0.3,
    num_steps=20_000,
    positions_per_step=2_097_152,
    parameters=254_000_000,
)


def like(**changes):
    return dataclasses.replace(ON_GRID, **changes)


@pytest.mark.parametrize("name", KNOWN.grids)
def test_gain_at_a_cell_is_the_cells(name):
    grid = KNOWN.grids[name]
    for r, losses in grid.losses.items():
        for k, loss in zip(grid.bag_sizes, losses, strict=True):
            assert gain_in(grid, k, r) == pytest.approx(grid.baseline - loss)


def test_gain_between_cells_is_their_mean_in_the_middle():
    grid = KNOWN.grids["270m-20k"]
    around = [gain_in(grid, k, r) for k in (6, 7) for r in (0.2, 0.3)]
    assert gain_in(grid, 6.5, 0.25) == pytest.approx(sum(around) / 4)


def test_no_superposition_gains_nothing():
    grid = KNOWN.grids["270m-20k"]
    assert gain_in(grid, 6, 0) == gain_in(grid, 1, 0.3) == 0
    assert gain_in(grid, 6, 0.05) == pytest.approx(gain_in(grid, 6, 0.1) / 2)


@pytest.mark.parametrize(
    ("model", "steps"), [("270M", 20_000), ("270M", 100_000), ("600M", 20_000), ("3B", 20_000)]
)
def test_published_gain_at_equal_flops_is_inside_the_range(model, steps):
    """3B is none of the grids' models: its gain is the difference of two figures."""
    runs = [run for run in KNOWN.runs.values() if (run.model, run.num_steps) == (model, steps)]
    baseline = next(run for run in runs if run.bag_size == 1)
    tst = next(run for run in runs if run.bag_size == 6)
    found = estimate(KNOWN, like(num_steps=steps, parameters=tst.parameters))
    published_gain = baseline.loss - tst.loss
    if baseline.loss_by_figure:
        published_gain = baseline.loss_by_figure - tst.loss_by_figure
    assert found.low <= published_gain <= found.high
    assert found.low <= found.gain - KNOWN.noise_nats < found.gain + KNOWN.noise_nats <= found.high


def test_on_a_grid_nothing_is_extrapolated_and_the_range_is_the_noise():
    found = estimate(KNOWN, ON_GRID)
    assert not found.is_extrapolated
    assert found.gain == pytest.approx(3.2124 - 3.1423)
    assert found.high - found.low == pytest.approx(2 * KNOWN.noise_nats)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": 3_340_000_000}, "6.0 times the parameters of the largest grid"),
        ({"parameters": 25_400_000}, "10.0 times fewer parameters"),
        ({"num_steps": 2_000}, "2,000 steps, grids have 20,000 to 100,000"),
        ({"num_steps": 125_000}, "125,000 steps"),
        ({"bag_size": 17.0}, "K = 17, grids of this kind end at 16"),
        ({"bag_size": 14.0, "num_steps": 40_000}, "K = 14, grids of this kind end at 13"),
        ({"bag_size": 14.0, "parameters": 561_000_000}, "K = 14, grids of this kind end at 13"),
        (
            {"parameters": 561_000_000, "num_steps": 60_000},
            "60,000 steps of 561M: only the grids of 254M have two lengths",
        ),
        ({"superposition_fraction": 0.95}, "r = 0.95"),
        ({"superposition_fraction": 0.05}, "r = 0.05"),
        ({"num_bag_sizes": 2}, "2 bag sizes"),
        ({"slot_weights": "exp(-i)"}, "exp(-i)"),
        ({"slot_weights": "1/i"}, "1/i"),
        ({"inputs": "tokens"}, "one side alone"),
        ({"resets": ("reset-embeddings",)}, "reset-embeddings: one published run"),
    ],
)
def test_what_lies_beyond_the_grids_is_named(changes, words):
    found = estimate(KNOWN, like(**changes))
    assert found.is_extrapolated
    assert any(words in each for each in found.beyond), found.beyond


def test_differences_between_grids_widen_the_range_beyond_them():
    inside, outside = estimate(KNOWN, ON_GRID), estimate(KNOWN, like(parameters=10**10))
    assert outside.high - outside.low > inside.high - inside.low


def test_gain_falls_with_length_as_from_table_4_to_table_5():
    assert estimate(KNOWN, like(num_steps=100_000)).gain == pytest.approx(3.0921 - 3.0480)
    longer = [estimate(KNOWN, like(num_steps=n)).gain for n in (20_000, 40_000, 100_000, 300_000)]
    assert longer == sorted(longer, reverse=True)


def test_one_side_has_its_share_of_the_gain():
    whole = estimate(KNOWN, ON_GRID).gain
    output_only = estimate(KNOWN, like(inputs="tokens"))
    input_only = estimate(KNOWN, like(targets="tokens"))
    assert output_only.gain / whole == pytest.approx(0.0351 / 0.0747, rel=1e-3)
    assert input_only.gain / whole == pytest.approx(0.0398 / 0.0747, rel=1e-3)
    assert like(inputs="tokens").token_factor == 1
    assert like(targets="tokens").token_factor == pytest.approx(2.5)


def test_slot_weights_change_the_gain_as_table_7_does():
    at_16 = {"bag_size": 12.0, "superposition_fraction": 0.5, "parameters": 561_000_000}
    found = estimate(KNOWN, like(**at_16, slot_weights="1/i")).gain
    assert found == pytest.approx(3.0186 - 2.9584)


def test_reset_loses_by_the_published_run_and_the_range_has_what_was_seen_here():
    for key in ("reset-embeddings", "reset-optimizer"):
        found = estimate(KNOWN, like(resets=(key,)))
        assert found.low < found.gain < 0 < KNOWN.resets[key].gain_here < found.high


def test_a_cell_of_a_grid_is_no_extrapolation():
    for grid in KNOWN.grids.values():
        if grid.slot_weights != "uniform" or grid.num_steps > 20_000:
            continue
        for k in grid.bag_sizes:
            assert not estimate(KNOWN, like(bag_size=float(k), parameters=grid.parameters)).beyond


def test_below_the_shortest_grid_the_range_reaches_to_no_gain():
    found = estimate(KNOWN, like(num_steps=10_000))
    assert found.low < 0 < found.gain


def schedule(*entries, num_steps=100):
    phases = resolve_phases(entries, num_steps=num_steps)
    return Schedule(phases=phases, num_latent_positions=8, global_batch_size=2)


def test_point_of_a_schedule_has_its_share_and_its_tokens():
    plan = schedule((6, 0.3), (1, 0.7))
    point = point_of(plan, parameters=1)
    assert (point.bag_size, point.superposition_fraction) == (6, 0.3)
    assert point.token_factor * 100 * 16 == plan.raw_tokens_before(100)
    several = schedule((8, 0.1), (2, 0.2), (1, 0.7))
    point = point_of(several, parameters=1)
    assert (point.bag_size, point.num_bag_sizes) == (4, 2)
    assert point.token_factor * 100 * 16 == pytest.approx(several.raw_tokens_before(100))
    assert point_of(schedule((1, None)), parameters=1) is None


def test_price_is_that_of_the_evidence():
    """0.36 s at r = 0.3, as docs/should-you-use-tst.md says."""
    assert slope_price(1.0, 0.3) == pytest.approx(0.357, abs=1e-3)
