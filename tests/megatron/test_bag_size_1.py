"""With bag size 1 the layer is not there: the numbers are those of Megatron without us, bit for
bit."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def checked_flags():
    """Megatron's command line for a recipe, and the token batches that its stream gives."""
    from tst_megatron.host import cpu

    cpu.install()
    from tst_megatron.check import check_recipe
    from tst_megatron.data.stream import TokenStream, ensure_indexes
    from tst_megatron.recipe import load_recipe

    def make(recipe: Path, world_size: int) -> tuple[list[str], np.ndarray]:
        checked = check_recipe(load_recipe(recipe), world_size=world_size)
        ensure_indexes(checked.stream, checked.corpora, note=print)
        stream = TokenStream(checked.stream, checked.corpora)
        samples = range(stream.plan.num_samples)
        return list(checked.flags), np.stack([stream.tokens(i) for i in samples])

    return make


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def bits(values: list[float]) -> list[str]:
    return [struct.pack("<f", value).hex() for value in values]


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_losses_and_gradient_norms_are_those_of_stock_megatron(
    text, tmp_path, checked_flags, expert_parallel
):
    recipe = tiny.write_recipe(
        tmp_path / "baseline.yaml",
        text,
        {"bag-size": 1, "stream-unit-bags": 4},
        expert_model_parallel_size=expert_parallel,
        eval_iters=0,
    )
    flags, tokens = checked_flags(recipe, expert_parallel)
    np.save(tmp_path / "tokens.npy", tokens)
    ours = tiny.start_ranks(
        *("train", str(recipe), "--run-folder", str(tmp_path / "run")),
        num_ranks=expert_parallel,
        log=tmp_path / "ours.log",
    )
    script = Path(__file__).parent / "stock_arm.py"
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": tiny.free_port()}
    log = (tmp_path / "stock.log").open("w")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "tokens.npy"), *flags]
            + ["--tensorboard-dir", str(tmp_path / "stock")],
            env=tiny.environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(expert_parallel), **shared
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank in range(expert_parallel)
    ]
    for process in [*ranks, *ours]:
        assert process.wait(timeout=300) == 0, (tmp_path / "stock.log").read_text()[-4000:] + (
            tmp_path / "ours.log"
        ).read_text()
    rows = tiny.metrics(tmp_path / "run")
    assert len(rows) == 20
    stock_losses = scalars(tmp_path / "stock", "lm loss")
    assert len(set(stock_losses)) == 20  # it trains
    assert bits([row["lm loss"] for row in rows]) == bits(stock_losses)
    assert bits([row["grad-norm"] for row in rows]) == bits(
        scalars(tmp_path / "stock", "grad-norm")
    )
