"""Train on two GPUs: Transformer Engine's context parallelism, and a schedule plan that overlaps.

Neither means anything on one. A context-parallel group of one rank has nothing to cut; and the plan
frees what it has sent to other ranks, which of one rank alone is what it has received.
"""

import pytest
import tiny
from devices import num_devices, train

from tst_megatron.system.packages import has_transformer_engine

pytestmark = pytest.mark.gpu

BF16 = ("profile=null", "bf16=true")


@pytest.fixture(autouse=True)
def two_gpus():
    found = num_devices()
    if found < 2:
        pytest.skip(f"needs two CUDA devices, and torch finds {found}")
    if not has_transformer_engine():
        pytest.skip("needs Transformer Engine, which is not installed")


@pytest.mark.parametrize(
    ("layout", "feature"),
    [
        ("micro-batch-size=2", "context-parallel-size=2"),
        ("expert-model-parallel-size=2", "overlap-moe-expert-parallel-comm=true"),
    ],
)
def test_losses_of_both_phases_are_those_without_it(text, tmp_path, layout, feature):
    recipe = tiny.write_recipe(
        tmp_path / "tst.yaml", text, {"bag-size": 4, "superposition-steps": 10}
    )
    train(recipe, tmp_path / "without", *BF16, layout, num_ranks=2)
    train(recipe, tmp_path / "with", *BF16, layout, feature, num_ranks=2)
    without, with_it = tiny.metrics(tmp_path / "without"), tiny.metrics(tmp_path / "with")
    for name, steps in (("bag loss", slice(0, 10)), ("lm loss", slice(10, 20))):
        expected = [row[name] for row in without[steps]]
        # bf16 with other summation orders; 20 steps let the difference grow.
        assert [row[name] for row in with_it[steps]] == pytest.approx(expected, rel=1e-2)
