"""A run that was started in one parallel layout goes on in another.

The learning rate is a fifth of the tiny recipe's: in fp32 the layouts differ by rounding, and a
larger one turns that into other choices of experts, which no tolerance on a loss would cover.
"""

import json
import sys
from dataclasses import dataclass

import pytest
import recording
import tiny
from interrupted import interrupted_at

from tst_megatron.checkpoint import resharding
from tst_megatron.checkpoint.whole import problems
from tst_megatron.cli import app
from tst_megatron.megatron import arguments
from tst_megatron.megatron.distributed_checkpoint.model import pending_rerun, read_saved_state
from tst_megatron.megatron.repairs import expert_optimizers
from tst_megatron.recipe import padding
from tst_megatron.recipe.keys import kinds
from tst_megatron.recipe.keys.table import destination_of

SWITCH, STEPS = 12, 26
SUPERPOSITION, RECOVERY = 8, 16
"""Steps completed when a run is resumed; ten steps or more come after each, and after the first
also the switch."""

ONE_RANK = ("tensor-model-parallel-size=1", "sequence-parallel=false")
TP2 = ("tensor-model-parallel-size=2", "sequence-parallel=true")
PP2 = ("pipeline-model-parallel-size=2",)
VPP2 = (*PP2, "num-layers-per-virtual-pipeline-stage=1")
EP1, EP2, EP4 = (f"expert-model-parallel-size={size}" for size in (1, 2, 4))
IN_BUCKETS = "dist-ckpt-optim-fully-reshardable=false"
ONE_BUCKET = "overlap-grad-reduce=false"
SYNC = "async-save=false"
"""The process that writes takes half a minute to start, on each rank."""


@dataclass(frozen=True)
class Case:
    """A resume: of which run, after how many steps, with how many ranks and which keys."""

    of: str
    step: int
    num_ranks: int
    keys: tuple[str, ...]


CASES = {
    "TP1 to TP2 in superposition": Case(
        "one rank", SUPERPOSITION, 2, (*TP2, "tst.keep-last-checkpoints=1")
    ),
    "TP1 to TP2 in recovery": Case("one rank", RECOVERY, 2, (*TP2, ONE_BUCKET)),
    "TP2 back to TP1 at the switch": Case("TP1 to TP2 in superposition", SWITCH, 1, ONE_RANK),
    "PP1 to PP2 in superposition": Case("one rank", SUPERPOSITION, 2, PP2),
    "PP1 to PP2 in recovery": Case("one rank", RECOVERY, 2, PP2),
    "PP2 to VPP2": Case("PP1 to PP2 in superposition", RECOVERY, 2, VPP2),
    "EP2 to EP4 in superposition": Case("two experts' ranks", SUPERPOSITION, 4, (EP4, SYNC)),
    "EP2 to EP4 in recovery": Case("two experts' ranks", RECOVERY, 4, (EP4, SYNC)),
    "EP2 to EP1": Case("two experts' ranks", RECOVERY, 1, (EP1,)),
    "EP1 to EP2": Case("one rank", SUPERPOSITION, 2, (EP2, "ddp-bucket-size=5000")),
    # In the same layout.
    "one rank again in recovery": Case("one rank", RECOVERY, 1, ()),
    "EP2 again in superposition": Case("two experts' ranks", SUPERPOSITION, 2, (SYNC,)),
    "EP2 again in recovery": Case("EP2 again in superposition", RECOVERY, 2, (SYNC,)),
    # The first of these only changes the format of what is saved from then on.
    "one rank in buckets": Case("one rank", SUPERPOSITION, 1, (IN_BUCKETS,)),
    "DP1 to DP2 in buckets": Case("one rank in buckets", RECOVERY, 2, (IN_BUCKETS,)),
}

SAME_LAYOUT = ("one rank in buckets", *(name for name in CASES if " again in " in name))
"""What is resumed as it was: bit-identical."""


class Runs:
    """The runs of this file, each made when it is first asked for."""

    def __init__(self, folder, recipes):
        self._folder, self._recipes = folder, recipes

    def recipe(self, name):
        return self._recipes[self.root(name)]

    def root(self, name):
        """The uninterrupted run that a run comes from."""
        return name if name in self._recipes else self.root(CASES[name].of)

    def tokens(self, name):
        return self._folder / f"{name} tokens"

    def log(self, name):
        return self._folder / f"{name}.log"

    def run(self, name):
        folder = self._folder / name
        if not folder.exists():
            case = CASES.get(name)
            if case is not None:
                interrupted_at(case.step, self.run(case.of), folder)
            num_ranks = case.num_ranks if case else 2 if name == "two experts' ranks" else 1
            ranks = tiny.fork_ranks(
                *("train", str(self.recipe(name)), *(case.keys if case else ())),
                *("--run-folder", str(folder)),
                num_ranks=num_ranks,
                log=self.log(name),
                tokens=self.tokens(name),
            )
            tiny.wait(ranks, self.log(name))
        return folder


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reshard")
    changes = {
        "num_layers": 4,
        "train_iters": STEPS,
        "save_interval": 8,
        "eval_interval": 13,
        "lr": 2e-3,
        "dist_ckpt_optim_fully_reshardable": True,
        # Several gradient buckets with padding at their ends.
        "overlap_grad_reduce": True,
        "ddp_bucket_size": 20_000,
    }
    tst = {"bag-size": 4, "superposition-steps": SWITCH}
    experts = {"expert_model_parallel_size": 2, "async_save": True, "num_layers": 2}
    # The experts' own buckets, whose sizes would be multiples of 128 elements.
    experts |= {"moe_ffn_hidden_size": 33, "ddp_bucket_size": 5000}
    recipes = {
        "one rank": tiny.write_recipe(folder / "one.yaml", text, tst, **changes),
        "two experts' ranks": tiny.write_recipe(
            folder / "experts.yaml", text, tst, **{**changes, **experts}
        ),
    }
    return Runs(folder, recipes)


def losses(run, event="step"):
    return {
        row["step"]: next(
            value for key, value in row.items() if "m loss" in key or "bag loss" in key
        )
        for row in tiny.metrics(run, event)
    }


@pytest.mark.parametrize("name", CASES)
def test_run_reads_the_same_text_and_learns_the_same_in_another_layout(runs, name):
    case, run, whole = CASES[name], runs.run(name), runs.run(runs.root(name))
    read, wanted = (
        recording.batches(runs.tokens(name)),
        recording.batches(runs.tokens(runs.root(name))),
    )
    assert list(read) == list(range(case.step, STEPS))
    assert read == {step: wanted[step] for step in read}
    assert {len(batch) for batch in read.values()} == {8}
    before, after = losses(whole), losses(run)
    assert list(after) == list(range(1, STEPS + 1))
    assert STEPS - case.step >= 10
    tolerance = 0 if name in SAME_LAYOUT else 1e-5
    # Rounding may let a position choose another expert, which moves the losses of one or two steps
    # by what that position counts. A state that was read wrongly moves those of all later steps.
    apart = sorted(abs(after[step] - before[step]) for step in after)
    most_chosen_otherwise = 0 if name in SAME_LAYOUT else 3
    assert apart[-1 - most_chosen_otherwise] <= tolerance
    assert apart[-1] <= 50 * tolerance
    validation = losses(whole, "validation")
    for step, loss in losses(run, "validation").items():
        assert abs(loss - validation[step]) <= 50 * tolerance
    # It does learn, so an update that went wrong would be seen.
    assert before[STEPS] < before[1] - 0.8


@pytest.mark.parametrize("name", ["TP1 to TP2 in superposition", "EP2 to EP4 in recovery"])
def test_adam_counts_on_from_the_step_that_was_saved(runs, name):
    state = read_saved_state(runs.run(name) / "checkpoints" / f"iter_{STEPS:07d}")["optimizer"]
    optimizers = state.values() if 0 in state else [state]
    steps = [
        group["step"]
        for optimizer in optimizers
        for group in optimizer["optimizer"]["param_groups"]
    ]
    assert len(steps) > 1
    assert set(steps) == {STEPS}


def test_start_says_what_changes_on_the_console_and_in_the_log_and_keeps_it(runs):
    name = "TP1 to TP2 in superposition"
    said = (
        "the layout changes after step 8: number of ranks 1 -> 2, tensor-model-parallel-size 1 -> "
        "2, sequence-parallel False -> True, expert-tensor-parallel-size 1 -> 2. The text that is "
        "read is the same; losses agree with those of the old layout to rounding, and not bit for "
        "bit"
    )
    log = runs.run(name) / "logs" / "rank-0.log"
    for text in (runs.log(name).read_text(), log.read_text()):
        assert text.count(said) == 1
    layouts = json.loads((runs.run(name) / "versions.json").read_text())["layouts"]
    assert [entry["after step"] for entry in layouts] == [0, SUPERPOSITION]
    assert layouts[1]["layout"]["tensor-model-parallel-size"] == 2


def test_third_start_compares_with_the_newest_checkpoint(runs):
    """Not with the recipe of the first start, which has the same layout as the third."""
    name = "TP2 back to TP1 at the switch"
    runs.run(name)
    assert "tensor-model-parallel-size 2 -> 1" in runs.log(name).read_text()
    layouts = json.loads((runs.run(name) / "versions.json").read_text())["layouts"]
    assert [entry["after step"] for entry in layouts] == [0, SUPERPOSITION, SWITCH]


def test_checkpoints_of_both_layouts_are_whole_and_kept_by_the_rule(runs):
    """Those of the expert-parallel run were saved asynchronously."""
    run = runs.run("TP1 to TP2 in superposition")
    kept = sorted(run.glob("checkpoints/iter_*"))
    assert [path.name for path in kept] == [f"iter_{step:07d}" for step in (SWITCH, 21, STEPS)]
    experts = [runs.run(name) / "checkpoints" for name in ("two experts' ranks", "EP2 to EP1")]
    for checkpoint in (*kept, *(folder / f"iter_{STEPS:07d}" for folder in experts)):
        assert problems(checkpoint, deep=True) == []


# --- what is refused ------------------------------------------------------------------------------


def contents(folder):
    """When each file was written, and its size, but for the note of who last held the folder."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path != folder / "lock"
    }


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Ask ``check`` and both kinds of ``train``; each must refuse in the same words."""

    def ask(recipe, folder, *keys):
        arguments = [str(recipe), *keys, "--run-folder", str(folder)]
        job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        before, said = contents(folder), []
        for command, environment in (
            (["check", *arguments, "--nproc", "2"], {}),
            (["train", *arguments, "--nproc", "2"], {}),
            (["train", *arguments], job),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", ["tst-megatron", *command])
                for key, value in environment.items():
                    patch.setenv(key, value)
                with pytest.raises(SystemExit) as ended:
                    app.main()
            printed = capsys.readouterr()
            assert ended.value.code == 2
            said.append(
                [line.removeprefix("  - ") for line in printed.err.splitlines() if "  - " in line]
            )
        assert said[0] == said[1] == said[2]
        assert contents(folder) == before
        return said[0]

    return ask


def test_optimizer_in_buckets_is_refused_another_layout_before_a_rank_starts(
    runs, refuse, tmp_path
):
    interrupted_at(RECOVERY, runs.run("one rank in buckets"), tmp_path / "run")
    # What the recipe says now is not what counts.
    keys = (*PP2, "dist-ckpt-optim-fully-reshardable=true")
    (problem,) = refuse(runs.recipe("one rank"), tmp_path / "run", *keys)
    assert problem == (
        "pipeline-model-parallel-size 1 -> 2: the checkpoint's optimizer state was saved without "
        "dist-ckpt-optim-fully-reshardable, and loads into another number of data-parallel ranks "
        "alone. Go on in the old layout with dist-ckpt-optim-fully-reshardable: true until the run "
        "has saved a checkpoint, and change the layout then"
    )


def test_other_padded_vocabulary_and_all_else_is_refused_at_once(runs, refuse, tmp_path):
    """A key that the folder and its checkpoint both know of is named once."""
    interrupted_at(RECOVERY, runs.run("one rank"), tmp_path / "run")
    keys = (*TP2, "make-vocab-size-divisible-by=384", "lr=0.5", "seed=7")
    found = refuse(runs.recipe("one rank"), tmp_path / "run", *keys)
    assert [problem.partition(":")[0] for problem in found] == [
        "lr",
        "seed",
        "make-vocab-size-divisible-by",
    ]
    assert found[2].endswith(
        "has 512 rows, over which the loss is taken. Set make-vocab-size-divisible-by: 256"
    )


def test_check_says_where_a_start_in_another_layout_would_begin(
    runs, monkeypatch, capsys, tmp_path
):
    interrupted_at(RECOVERY, runs.run("one rank"), tmp_path / "run", torn="")
    before = contents(tmp_path / "run")
    command = ["check", str(runs.recipe("one rank")), *PP2, "--run-folder", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *command])
    with pytest.raises(SystemExit) as ended:
        app.main()
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert "number of ranks 1 -> 2, pipeline-model-parallel-size 1 -> 2. The text" in printed
    assert f"would start after step {RECOVERY}\n" in printed
    assert contents(tmp_path / "run") == before


# --- what Megatron has to agree with --------------------------------------------------------------


def test_layout_keys_are_megatrons_and_read_by_the_right_name():
    parser = arguments.argument_parser()
    options = {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
    }
    values = parser.parse_args([])
    for key in kinds.LAYOUT_KEYS:
        assert key in options, key
        # No other spelling of the same key would stay part of the recipe.
        spellings = {name.removeprefix("--") for name in options[key].option_strings}
        assert spellings <= set(kinds.LAYOUT_KEYS), spellings
    for key in (*kinds.SIZE_KEYS, *kinds.TRANSPORT_KEYS):
        assert destination_of(key) == options[key].dest
        assert hasattr(values, options[key].dest)


def test_bucket_and_vocabulary_sizes_are_megatrons(monkeypatch):
    from types import SimpleNamespace

    from megatron.training import training
    from megatron.training.vocab_utils import calculate_padded_vocab_size

    monkeypatch.setattr(training, "get_pg_size", lambda group: group.size())
    for overlap, size, replicas in (
        (False, None, 1),
        (True, None, 1),
        (True, None, 64),
        (True, 7, 9),
    ):
        args = SimpleNamespace(
            overlap_grad_reduce=overlap,
            ddp_num_buckets=None,
            ddp_bucket_size=size,
            data_parallel_size=replicas,
            context_parallel_size=1,
        )
        config = SimpleNamespace(num_buckets=None, bucket_size=size)
        group = SimpleNamespace(size=lambda replicas=replicas: replicas)
        wanted = training.resolve_ddp_bucket_size(config, group, overlap, 10**9)
        said = resharding._bucket_size(args)
        assert said == ("all parameters" if wanted is None else f"{wanted:,} parameters")
    args = SimpleNamespace(make_vocab_size_divisible_by=12, tensor_model_parallel_size=4)
    wanted = calculate_padded_vocab_size(1001, 12, 4, False)
    assert padding.padded_vocabulary(1001, args) == wanted


def test_search_for_a_fault_is_seen_in_a_checkpoint(runs):
    from megatron.core.rerun_state_machine import RerunState

    checkpoint = runs.run("one rank") / "checkpoints" / f"iter_{RECOVERY:07d}"
    assert pending_rerun(read_saved_state(checkpoint)) is None
    pending = {"state": RerunState.WILL_RERUN_FROM_CHECKPOINT, "current_iteration": 6}
    assert pending_rerun({"rerun_state_machine": pending}) == "compute step 7 again on another node"
    assert pending_rerun({}) is None


def test_state_of_one_optimizer_becomes_that_of_two_and_back():
    group = {"is_expert_parallel": False, "wd_mult": 1.0, "step": 6}
    one = {"optimizer": {"param_groups": [group]}, "kind": "k"}
    first, second = {"param_state": "dense"}, {"param_state": "experts"}
    both = [group, {**group, "is_expert_parallel": True}]
    found = expert_optimizers.as_optimizers({**one, 0: first, 1: second}, 2)
    assert found == {
        number: {"optimizer": {"param_groups": both}, "kind": "k", **own}
        for number, own in ((0, first), (1, second))
    }
    found = expert_optimizers.as_optimizers({0: one, 1: one, "param_state": "all"}, 1)
    assert found == {"optimizer": {"param_groups": both}, "kind": "k", "param_state": "all"}
    for same in ({**one, **first}, {0: one, 1: one}):
        assert expert_optimizers.as_optimizers(same, 1) is same
