"""The command tells the memory of a rank."""

import json
import subprocess
import sys
from pathlib import Path

import tiny

RECIPE = Path(__file__).resolve().parents[3] / "examples" / "qwen3-10b-a1b" / "tst.yaml"


def test_memory_of_a_rank_is_told_after_the_model_was_counted():
    """Both build models, of two kinds of attention, which Megatron refuses in one process."""
    words = ["plan", str(RECIPE), "num-layers=2", "--memory", "--gpus", "8", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "tst_megatron", *words],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    memory = json.loads(ended.stdout)["memory"]
    assert memory["fits"] and sum(memory["bytes by part"].values()) == memory["total bytes"]
    assert "kept for backward: moe" in memory["bytes by part"]
