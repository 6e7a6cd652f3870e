"""The tables of what happens at the switch."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parents[1] / "compare")]

from evidence.report import switch  # noqa: E402
from made_runs import Made  # noqa: E402


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two records of the sweep ``switch``, with a gradient norm that says its step."""
    for arm, phases, base in (("baseline", ((1, 2000),), 1.0), ("tst", ((4, 600), (1, 1400)), 2.0)):
        path = Made(tmp_path / "switch" / f"{arm}_seed-1", phases).path
        rows = [
            {"event": "step", "step": step, "lm loss": 3.0, "grad-norm": base * step}
            for step in range(1, 2001)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        states = [
            {"step": step, "parameter": "embedding.word_embeddings.weight", "rms": base * step}
            | {"moved": base, "first": 0.0, "second": base * step / 1000}
            for step in (500, 600, 700)
        ]
        (path / "states.jsonl").write_text("".join(json.dumps(row) + "\n" for row in states))
    monkeypatch.setattr(switch, "records", lambda: sorted((tmp_path / "switch").iterdir()))


def test_tables_compare_before_and_after_with_the_baseline(made):
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in switch.switch_tables().splitlines()
        if line.startswith("|") and "---" not in line
    ]
    states, metrics = (dict(zip(*pair, strict=True)) for pair in (lines[:2], lines[2:]))
    assert states == {
        "parameters": "`embedding.word_embeddings`",
        "size before": "1200.000",
        "size 100 steps later": "1400.000",
        "moved in between": "2.000",
        "baseline moved": "1.000",
        "gradient before": "1200.00",
        "gradient later": "1400.00",
        "baseline's gradient": "700.00",
    }
    assert metrics == {
        "model": "dense",
        "number": "grad-norm",
        "before": f"{2 * (401 + 600) / 2:.3f}",
        "first step": "1202.000",
        "10th": "1220.000",
        "50th": "1300.000",
        "baseline then": f"{(601 + 800) / 2:.3f}",
    }


def test_tables_of_nothing_say_so(monkeypatch):
    monkeypatch.setattr(switch, "records", list)
    assert switch.switch_tables() == "None of these runs was trained yet.\n"
