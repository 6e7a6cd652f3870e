"""A start loads what was saved, or goes back to the checkpoint before with a word: in any case.

The load of a job is made again and again in one process, since a start of Megatron takes half a
minute. ``test_damaged_checkpoints.py`` has whole starts.
"""

import functools
import hashlib
import random
import shutil

import pytest
from damage import with_a_command
from processes import run_ranks

from tst_megatron.checkpoint.folder import TRACKER, list_checkpoints
from tst_megatron.checkpoint.record import RECORD

OLDER, NEWEST = 8, 12
NUM_FLIPS = 200
EXTRA = "decoder.layers.mlp.experts.experts.linear_fc1._extra_state"
"""A state of a layer, which is no tensor."""


@pytest.fixture
def run(short_run, tmp_path):
    """A run with two checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(short_run, folder)
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        if checkpoint.name not in ("iter_0000008", "iter_0000012"):
            shutil.rmtree(checkpoint)
    return folder


class Job:
    """One rank of a job that can load again."""

    def __init__(self, recipe, run, num_ranks):
        import os

        from tst_megatron.megatron import arguments, single_step
        from tst_megatron.megatron.distributed_checkpoint import loading
        from tst_megatron.megatron.repairs.apply import repair_wheel
        from tst_megatron.model.gpt import TSTGPTModelConfig
        from tst_megatron.recipe.recipe import load_recipe
        from tst_megatron.training.check.check_recipe import check_recipe
        from tst_megatron.training.run.folder import RunFolder
        from tst_megatron.training.run.plan import run_plan
        from tst_megatron.training.run.start import fall_back

        self.checkpoints = run / "checkpoints"
        self.is_first = os.environ["RANK"] == "0"
        self.said = []
        checked = check_recipe(load_recipe(recipe, []), world_size=num_ranks)
        repair_wheel()
        self._args = arguments.parse_arguments(checked.flags)
        self._trainer = single_step.Trainer(
            self._args, TSTGPTModelConfig.from_arguments(self._args, checked.recipe.tst)
        )
        self._args.load = str(self.checkpoints)
        loading.observe_loading(
            NEWEST if self.is_first else None,
            None,
            functools.partial(
                fall_back,
                run_plan(checked),
                RunFolder(run),
                say=self.said.append,
                distrust=lambda _: None,
            ),
        )

    def load(self):
        """Load from the newest; the step that was loaded, and a hash of all that it gave."""
        import torch

        from tst_megatron.megatron import names

        if self.is_first:
            (self.checkpoints / TRACKER).write_text(str(NEWEST))
        torch.distributed.barrier()
        self.said.clear()
        trainer = self._trainer
        step, _ = names.training.load_checkpoint(
            trainer.models, trainer.optimizer, trainer._scheduler
        )
        return step, self._hash()

    def _hash(self):
        import torch

        trainer, found = self._trainer, hashlib.sha256()
        state = [parameter for model in trainer.models for parameter in model.parameters()]
        optimizer = trainer.optimizer
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            for group in part.optimizer.param_groups:
                state += [group["lr"], group["weight_decay"], *group["params"]]
            for moments in part.optimizer.state.values():
                # The first load finds none, and makes them in another order.
                state += [moments[name] for name in sorted(moments)]
        state += [str(trainer._scheduler.state_dict()), self._args.consumed_train_samples]
        for value in [*state, torch.get_rng_state()]:
            if isinstance(value, torch.Tensor):
                found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy())
            else:
                found.update(repr(value).encode())
        return found.hexdigest()


def flipped(file, position, bit):
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)


def load_flipped(recipe, run, seed):
    """What each flip of one bit led to."""
    job = Job(recipe, run, 1)
    newest = job.checkpoints / "iter_0000012"
    newest_hash = job.load()
    draw, outcomes = random.Random(seed), []
    for _ in range(NUM_FLIPS):
        # By file, so that the small ones have their share.
        file = draw.choice(sorted(newest.iterdir()))
        position, bit = draw.randrange(file.stat().st_size), draw.randrange(8)
        flipped(file, position, bit)
        outcomes.append((file.name, position, bit, job.load(), list(job.said)))
        flipped(file, position, bit)
    again = job.load()
    for path in list_checkpoints(job.checkpoints)[:1]:
        (path / ".metadata").unlink()
    return newest_hash, again, job.load(), outcomes


def test_no_flipped_bit_is_loaded_without_a_word(short_recipe, run):
    ((newest, again, older, outcomes),) = run_ranks(
        load_flipped, 1, short_recipe("whole"), run, 1, preload="preloaded"
    )
    assert newest[0] == NEWEST and older[0] == OLDER and newest[1] != older[1]
    assert again == newest
    noticed = 0
    for *where, loaded, said in outcomes:
        if said:
            noticed += 1
            # Nothing is left of what had been read before the damage was met.
            assert loaded == older, where
            assert said[0].startswith("iter_0000012: cannot be loaded: "), said
            assert said[1] == "going on from iter_0000008: 4 steps are made again"
        else:
            # What no load reads: a name of a program, a number that is said twice, and the record
            # that is read before any rank starts.
            assert loaded == newest, where
    assert noticed > sum(where[0] != RECORD for where in outcomes) * 0.8, outcomes


def load_commands(recipe, run, touched):
    job = Job(recipe, run, 1)
    newest = job.checkpoints / "iter_0000012"
    kept = newest.with_name("kept")
    shutil.copytree(newest, kept)
    outcomes = {}
    for where in (".metadata", "common_state", "rng_state", EXTRA):
        with_a_command(newest, where, touched)
        outcomes[where] = job.load()[0], list(job.said)
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)
    return outcomes


def test_no_start_runs_a_command_out_of_a_checkpoint(short_recipe, run, tmp_path):
    (outcomes,) = run_ranks(
        load_commands, 1, short_recipe("whole"), run, tmp_path / "touched", preload="preloaded"
    )
    assert not (tmp_path / "touched").exists()
    assert len(outcomes) == 4
    for where, (step, said) in outcomes.items():
        assert step == OLDER, where
        assert "it names posix.system, which no checkpoint holds" in said[0], where
