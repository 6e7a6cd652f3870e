"""With bag size 1 the layer is not there: the numbers are those of Megatron without us, bit for
bit."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def checked_flags():
    """Megatron's command line for a recipe, and the token batches that its stream gives."""
    from tst_megatron.megatron.cpu import host

    host.install()
    from tst_megatron.data.stream.stream import TokenStream, ensure_indexes
    from tst_megatron.recipe.recipe import load_recipe
    from tst_megatron.training.check.check_recipe import check_recipe

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


# name: (ranks, changes to the recipe, scalars beside the loss and the norm of the gradient)
CASES = {
    "one rank": (1, {}, ()),
    "expert parallel": (2, {"expert_model_parallel_size": 2}, ()),
    # The last stage has the heads, and with them an embedding of its own.
    "multi-token prediction, pipeline": (
        2,
        {"pipeline_model_parallel_size": 2, "mtp_num_layers": 2, "train_iters": 8},
        ("mtp_1 loss", "mtp_2 loss"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradient_norms_are_those_of_stock_megatron(text, tmp_path, checked_flags, case):
    num_ranks, changes, more = CASES[case]
    recipe = tiny.write_recipe(
        tmp_path / "baseline.yaml",
        text,
        {"bag-size": 1, "stream-unit-bags": 4},
        eval_iters=0,
        **changes,
    )
    flags, tokens = checked_flags(recipe, num_ranks)
    np.save(tmp_path / "tokens.npy", tokens)
    ours = tiny.fork_ranks(
        *("train", str(recipe), "--run-folder", str(tmp_path / "run")),
        num_ranks=num_ranks,
        log=tmp_path / "ours.log",
    )
    stock = tiny.fork_stock_ranks(
        *(str(tmp_path / "tokens.npy"), *flags, "--tensorboard-dir", str(tmp_path / "stock")),
        num_ranks=num_ranks,
        log=tmp_path / "stock.log",
    )
    tiny.wait(stock, tmp_path / "stock.log")
    tiny.wait(ours, tmp_path / "ours.log")
    rows = tiny.metrics(tmp_path / "run")
    stock_losses = scalars(tmp_path / "stock", "lm loss")
    assert len(rows) == len(set(stock_losses)) == changes.get("train_iters", 20)  # it trains
    for name in ("lm loss", "grad-norm", *more):
        theirs = bits(scalars(tmp_path / "stock", name))
        assert bits([row[name] for row in rows]) == theirs, name
        assert bits(scalars(tmp_path / "run" / "tensorboard", name)) == theirs, name
