"""``checkpoint verify`` on what Megatron saved: content is proven, and no flipped bit passes."""

import random
import re
import shutil

import pytest
from forged_checkpoints import forge

from tst_megatron.checkpoint.folder import checkpoint_of, list_checkpoints
from tst_megatron.checkpoint.record import RECORD
from tst_megatron.checkpoint.whole import examine, problems
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.check.check_recipe import check_recipe
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.saves import is_finished

SHARD = "__0_0.distcp"
NUM_FLIPS = {".metadata": 80, "metadata.json": 30, RECORD: 65, SHARD: 25}
"""Together 200; a flip in a shard takes longest to find."""

FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
BUCKET = r"optimizer\.distributed\..*\.bucket_idx_0\.{}"


@pytest.fixture
def checkpoint(short_run, tmp_path):
    newest = list_checkpoints(short_run / "checkpoints")[0]
    shutil.copytree(newest, tmp_path / newest.name)
    return tmp_path / newest.name


def test_every_checkpoint_of_a_run_is_proven_with_nothing_left_out(short_run):
    for path in list_checkpoints(short_run / "checkpoints"):
        found = examine(path, deep=True)
        assert (found.problems, found.notes) == ([], []), path


def test_none_of_200_flipped_bits_is_called_whole(checkpoint):
    rng = random.Random(17)
    assert {path.name for path in checkpoint.iterdir()} == set(NUM_FLIPS)
    for name, number in NUM_FLIPS.items():
        with (checkpoint / name).open("r+b") as file:
            size = file.seek(0, 2)
            for _ in range(number):
                position, bit = rng.randrange(size), 1 << rng.randrange(8)
                file.seek(position)
                (byte,) = file.read(1)
                file.seek(position)
                file.write(bytes([byte ^ bit]))
                file.flush()
                found = problems(checkpoint) or problems(checkpoint, deep=True)
                assert found, (name, position, bit)
                file.seek(position)
                file.write(bytes([byte]))
    assert problems(checkpoint, deep=True) == []


def tensor_like(checkpoint, pattern):
    from torch.distributed.checkpoint import FileSystemReader

    names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return next(name for name in names if re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    ("pattern", "value", "sentence"),
    [
        (re.escape(FC1), 3.0, f"and 1 weights are in none of them ({FC1})"),
        (re.escape(FC1), float("nan"), f"{FC1} has 1 values that are not finite"),
        (BUCKET.format("param"), 3.0, "values in its buckets are of no weight"),
        (BUCKET.format("exp_avg_sq"), -1.0, "holds squares, and 1 of them are negative"),
        (BUCKET.format("exp_avg"), float("inf"), "has 1 values that are not finite"),
    ],
)
def test_wrong_values_with_right_checksums_are_named(checkpoint, pattern, value, sentence):
    """In the format that Megatron saves by default, where it does not say which weight is where."""

    def change(tensor):
        tensor.view(-1)[5] = value

    forge(checkpoint, tensor_like(checkpoint, pattern), change)
    found = problems(checkpoint, deep=True)
    assert any(sentence in problem for problem in found), found


def test_a_run_is_finished_only_by_a_checkpoint_of_its_last_step(short_run, short_recipe, tmp_path):
    plan = run_plan(check_recipe(load_recipe(short_recipe("whole"))))
    run = RunFolder(tmp_path / "run")
    last = checkpoint_of(run.checkpoints, 24)
    shutil.copytree(checkpoint_of(short_run / "checkpoints", 20), last)
    assert not is_finished(run, plan)
    # As a copy from before there were records.
    (last / RECORD).unlink()
    assert not is_finished(run, plan)
    assert problems(last) == ["the folder's name says step 24, and what is in it is of step 20"]
    shutil.copytree(checkpoint_of(short_run / "checkpoints", 24), last, dirs_exist_ok=True)
    assert is_finished(run, plan)


def test_common_state_of_another_step_is_noticed_without_a_record(checkpoint, short_run):
    """Shards of one name and size, exchanged between two checkpoints."""
    other = checkpoint_of(short_run / "checkpoints", 20)
    shutil.copyfile(other / SHARD, checkpoint / SHARD)
    assert f"{SHARD} is not the one that {RECORD} says was saved" in problems(checkpoint)
    (checkpoint / RECORD).unlink()
    assert problems(checkpoint) != []
