"""Pairs of recorded runs: who belongs together, and what a pair says."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parents[1] / "compare")]

from evidence import pairs, records, runs  # noqa: E402
from evidence.plan import Sweep  # noqa: E402
from made_runs import Made, falling  # noqa: E402

ORDINARY, BAGS = ((1, 2000),), ((4, 600), (1, 1400))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Record a made run: ``recorded(sweep, name, phases, losses, **keys)``."""
    for module in (runs, pairs):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")

    def record(sweep, name, phases, losses, targets="bags", **keys):
        tst = {"inputs": "bags", "targets": targets, "slot-weights": "uniform"}
        tst |= {"reset-embeddings": False, "reset-optimizer": False}
        made = Made(tmp_path / "runs" / sweep / name, phases, tst=tst, **keys)
        made.steps(1, 20).validation(losses)
        made.blocks(2000, [losses[2000] * 128] * 64)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("seed: 1\n")
        one = Sweep(name=sweep, about="", recipe="evidence/dense.yaml", text="python-512")
        run = runs.Run(sweep=one, name=name, folder=made.path, recipe=recipe)
        records.write_record(run)

    return record


def test_seeds_are_one_pair_and_ablations_are_none(recorded):
    for seed in (1, 2, 3):
        recorded("one", f"b{seed}", ORDINARY, falling(STEPS, end=2.0 + seed / 100), seed=seed)
        recorded("one", f"t{seed}", BAGS, falling(STEPS, end=1.9 + seed / 99), seed=seed)
    recorded("one", "t4", BAGS, falling(STEPS, end=1.9), seed=4)
    recorded("one", "i1", BAGS, falling(STEPS, end=1.8), seed=1, targets="tokens")
    # As another sweep trained it, which saved more often.
    recorded("two", "again", BAGS, falling(STEPS, end=1.9), **{"seed": 1, "save-interval": 100})
    (pair,) = pairs.pairs()
    assert [path.name for path in pair.runs] == ["t1", "t2", "t3"]
    assert [path.name for path in pair.baselines] == ["b1", "b2", "b3"]
    assert pair.baseline_loss == pytest.approx(2.02)
    assert pair.gap == pytest.approx(-0.1 + 2 / 99 - 2 / 100)
    assert pair.low < pair.gap < pair.high


def test_branches_with_another_rate_are_no_run_of_their_recipe(recorded):
    recorded("one", "baseline", ORDINARY, falling(STEPS, end=2.0))
    # Its recipe is that of the run below, and its first steps had another learning rate.
    recorded("lr-low-then-best", "lr-0.002", BAGS, falling(STEPS, end=1.7))
    recorded("lr-tst", "tst", BAGS, falling(STEPS, end=1.9))
    (pair,) = pairs.pairs()
    assert pair.runs[0].name == "tst"


STEPS = range(200, 2001, 200)


def test_run_is_paired_with_the_ordinary_one_of_its_recipe_in_any_sweep(recorded):
    recorded("one", "baseline", ORDINARY, falling(STEPS, end=2.0))
    recorded("one", "other-rate", ORDINARY, falling(STEPS, end=1.0), lr=0.02)
    recorded("two", "tst", BAGS, falling(STEPS, end=1.9))
    recorded("two", "alone", BAGS, falling(STEPS, end=1.9), lr=0.03)
    (pair,) = pairs.pairs()
    assert [path.name for path in (*pair.runs, *pair.baselines)] == ["tst", "baseline"]
    assert (pair.bag_size, pair.fraction) == (4, 0.3)
    assert pair.gap == pytest.approx(-0.1) and pair.low < -0.1 < pair.high
    assert (pair.baseline_loss, pair.loss) == pytest.approx((2.0, 1.9))
    assert pair.positions == 2000 * 16 * 128
    assert pair.raw_tokens == (4 * 600 + 1400) * 16 * 128
    assert pair.positions_per_parameter == pytest.approx(pair.positions / 300_000)


def test_slope_is_the_fall_for_each_e_fold_of_steps_before_the_decay(recorded):
    curve = falling(STEPS, start=4.0, end=2.0)
    # The decay of the last 400 steps counts in no slope.
    losses = {step: loss - (0.5 if step > 1600 else 0.0) for step, loss in curve.items()}
    recorded("one", "baseline", ORDINARY, losses)
    recorded("one", "tst", BAGS, losses)
    (pair,) = pairs.pairs()
    assert pair.slope == pytest.approx(2.0 / math.log(10))
    assert pair.price == pytest.approx(pair.slope * math.log(1 / 0.7))


def test_committed_records_are_whole_and_give_pairs():
    found = pairs.records()
    assert found
    for record in found:
        for name in ("resolved.yaml", "facts.json", "metrics.jsonl", "origin.json"):
            assert (record / name).is_file(), record / name
    assert len(list(pairs.pairs())) >= 8
