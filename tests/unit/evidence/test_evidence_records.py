"""A record of a run says what the run folder says, in a hundredth of its size."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parents[1] / "compare")]

from evidence import records, runs  # noqa: E402
from evidence.plan import Sweep  # noqa: E402
from made_runs import Made, falling  # noqa: E402

from tst_megatron.compare.comparison import compare_runs  # noqa: E402
from tst_megatron.training.report.metrics_file import read_metrics  # noqa: E402

SWEEP = Sweep(name="map", about="", recipe="evidence/dense.yaml", text="python-512")
PHASES = {"baseline": ((1, 2000),), "tst": ((4, 600), (1, 1400))}


@pytest.fixture(params=[False, True], ids=["last array", "all arrays"])
def keeps_all(request):
    return request.param


@pytest.fixture
def pair(keeps_all, tmp_path, monkeypatch):
    """Two finished runs and their records: (folders, records)."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    random = np.random.default_rng(1)
    folders, kept = [], []
    text = random.normal(0, 0.5, 64)
    for name, phases in PHASES.items():
        end = {"baseline": 2.0, "tst": 1.9}[name]
        made = Made(tmp_path / "runs" / name, phases, data={f"{tmp_path}/text": 1.0})
        made.steps(1, 2000, seconds=0.1)
        made.validation(falling(range(200, 2000, 200), end=end))
        made.blocks(1000, (2.5 + text) * 128).blocks(2000, (end + text) * 128)
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(f"data:\n  {tmp_path}/text: 1.0\n")
        folders.append(made.path)
        sweep = dataclasses.replace(SWEEP, all_arrays=keeps_all)
        run = runs.Run(sweep=sweep, name=name, folder=made.path, recipe=recipe)
        records.write_record(run)
        kept.append(run.record)
    return folders, kept


def test_comparison_of_records_is_that_of_the_runs(pair, keeps_all):
    whole, kept = (compare_runs(paths) for paths in pair)
    (first,), (second,) = whole.pairs, kept.pairs
    assert first.gap.value < -0.05
    assert (second.gap, second.verdict, second.sentence) == (
        *(first.gap, first.verdict, first.sentence),
    )
    # Intervals of costs and of the crossing also need the arrays of the evaluations in between.
    ends = ("value", "low", "high") if keeps_all else ("value",)
    assert _ends(second, ends) == pytest.approx(_ends(first, ends), rel=1e-6)
    for one, other in zip(whole.arms, kept.arms, strict=True):
        assert other.numbers.keys() == one.numbers.keys()
        assert other.numbers == pytest.approx(one.numbers, rel=1e-6)
    assert not kept.notes


def _ends(pair, names):
    intervals = [pair.crossing_step, *pair.equal_loss.values()]
    assert len(intervals) == 5
    return [getattr(interval, name) for interval in intervals for name in names]


def test_record_keeps_all_evaluations_and_the_steps_after_the_switch(pair, keeps_all):
    folders, kept = pair
    for folder, record in zip(folders, kept, strict=True):
        for event in ("validation", "test"):
            rows = [read_metrics(path / "metrics.jsonl", event=event) for path in (folder, record)]
            assert rows[0] == rows[1]
        kept_arrays = sorted(path.name for path in (record / "evaluations").iterdir())
        between = ["validation-0001000.npz"] if keeps_all else []
        assert kept_arrays == [*between, "validation-0002000.npz"]
    steps = [row["step"] for row in read_metrics(kept[1] / "metrics.jsonl")]
    assert steps == [1, *range(50, 601, 50), *range(601, 661), *range(700, 2001, 50)]


def test_record_names_no_place_of_this_machine(pair, tmp_path):
    for path in (tmp_path / "results").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_torn_record_is_none_and_is_written_again(pair, tmp_path):
    (folder, _), (record, _) = pair
    recipe = tmp_path / "baseline.yaml"
    run = runs.Run(sweep=SWEEP, name="baseline", folder=folder, recipe=recipe)
    assert run.is_recorded
    (record / "recipe.yaml").unlink()
    (record / "left-over").write_text("")
    assert not run.is_recorded
    records.write_record(run)
    assert run.is_recorded and not (record / "left-over").exists()
