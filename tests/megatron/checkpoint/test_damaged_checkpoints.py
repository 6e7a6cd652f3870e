"""A run goes on from its newest whole checkpoint, exactly, and keeps what its rule says."""

import json
import re
import resource
import shutil

import pytest
import tiny
from damage import flip, overwrite

from tst_megatron.checkpoint.folder import TRACKER, list_checkpoints, step_of
from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.checkpoint.start import find_start
from tst_megatron.checkpoint.whole import problems

STEPS, SAVE = 16, 4
SWITCH, DECAY = 6, 11
"""Neither is a multiple of the save interval."""

NEWEST = "iter_0000012"


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = tiny.write_recipe(
        folder / "tst.yaml",
        text,
        {"bag-size": 4, "superposition-steps": SWITCH},
        train_iters=STEPS,
        save_interval=SAVE,
        eval_interval=8,
        lr_wsd_decay_iters=STEPS - DECAY,
    )
    start(recipe, folder / "run").finish()
    return recipe, folder / "run"


class Job:
    """One started run of one rank."""

    def __init__(self, processes, log):
        self._processes, self._log = processes, log

    def finish(self, status=0):
        tiny.wait(self._processes, self._log, status=status)
        return self._log.read_text()


def start(recipe, run, *overrides, first=None):
    log = run.parent / f"{run.name}.log"
    arguments = ("train", str(recipe), *overrides, "--run-folder", str(run))
    if first is not None:
        return Job(tiny.start_ranks(*arguments, num_ranks=1, log=log, preexec_fn=first), log)
    return Job(tiny.fork_ranks(*arguments, num_ranks=1, log=log), log)


def killed_after_step_12(uninterrupted, folder):
    """The run folder as it was when step 12 had been saved."""
    recipe, run = uninterrupted
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "iter_0000016")
    (folder / "checkpoints" / TRACKER).write_text("12")
    return recipe, folder


def saved_steps(run):
    return [step_of(checkpoint) for checkpoint in reversed(list_checkpoints(run / "checkpoints"))]


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


DAMAGE = {
    "empty tracker": (lambda c: (c / TRACKER).write_text(""), f"{TRACKER} said ''", 12),
    "torn tracker": (lambda c: (c / TRACKER).write_text("1"), f"{TRACKER} said '1'", 12),
    "tracker of a missing one": (
        lambda c: (c / TRACKER).write_text("99"),
        f"{TRACKER} said '99'",
        12,
    ),
    "truncated shard": (
        lambda c: truncate(c / NEWEST / "__0_0.distcp"),
        f"{NEWEST}: __0_0.distcp has ",
        11,
    ),
    "no .metadata": (
        lambda c: (c / NEWEST / ".metadata").unlink(),
        f"{NEWEST}: .metadata is missing; skipped",
        11,
    ),
    "no metadata.json": (
        lambda c: (c / NEWEST / "metadata.json").unlink(),
        f"{NEWEST}: metadata.json is missing; skipped",
        11,
    ),
    "flipped bit of a weight": (
        lambda c: flip(c / NEWEST, "decoder.layers.self_attention.linear_qkv.weight"),
        f"{NEWEST}: cannot be loaded: __0_0.distcp: decoder.layers.self_attention.linear_qkv.weig",
        11,
    ),
    "unreadable arguments": (
        lambda c: overwrite(c / NEWEST, "common_state"),
        f"{NEWEST}: __0_0.distcp: common_state/shard_0_1 is damaged (",
        11,
    ),
}


WITH_DAMAGED_RECORDS = "tracker of a missing one"
NO_ROWS = (b"\xff\xfe", b"[" * 100_000)


def damage_records(run):
    """What decides nothing, and the recipe of the run, whose copy is in each checkpoint."""
    truncate(run / "resolved.yaml")
    (run / "versions.json").write_text("[]")
    (run / "state.json").write_text("[1, 2]")
    (run / "recipe.yaml").write_bytes(b"")
    (run / "checkpoints" / "tokenizer.model").write_text("of another run")
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("a file")
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b"\n".join(NO_ROWS))


@pytest.fixture(scope="module")
def resumed(uninterrupted, tmp_path_factory):
    """Each damage, and what the run printed that went on over it; two at a time."""
    folder = tmp_path_factory.mktemp("damaged")
    printed = {}
    names = list(DAMAGE)
    for pair in zip(names[::2], names[1::2], strict=True):
        jobs = {}
        for name in pair:
            recipe, run = killed_after_step_12(uninterrupted, folder / name.replace(" ", "-"))
            DAMAGE[name][0](run / "checkpoints")
            if name == WITH_DAMAGED_RECORDS:
                damage_records(run)
            jobs[name] = run, start(recipe, run)
        printed |= {name: (run, job.finish()) for name, (run, job) in jobs.items()}
    return printed


@pytest.mark.parametrize("name", DAMAGE)
def test_run_goes_on_exactly_from_the_newest_whole_checkpoint(uninterrupted, resumed, name):
    _, words, step = DAMAGE[name]
    run, printed = resumed[name]
    log = (run / "logs" / "rank-0.log").read_text()
    assert words in printed
    # The log of the first start is above.
    assert words in log
    loaded = re.findall(r"successfully loaded checkpoint .* at iteration (\d+)", log)
    assert [int(number) for number in loaded] == [step]
    for event in ("step", "validation"):
        before, after = (tiny.metrics(folder, event) for folder in (uninterrupted[1], run))
        assert tiny.bits_of(after) == tiny.bits_of(before)
        assert len(after) == len(before)
    dropped = (run / "metrics.dropped.jsonl").read_bytes().splitlines()
    assert json.loads(dropped[0])["step"] == step + 1
    assert saved_steps(run) == saved_steps(uninterrupted[1])
    assert all(problems(path, deep=True) == [] for path in list_checkpoints(run / "checkpoints"))
    assert (run / "checkpoints" / TRACKER).read_text() == str(STEPS)
    assert json.loads((run / "state.json").read_text())["status"] == "finished"


def test_run_goes_on_over_damaged_records_with_a_word_and_keeps_them(uninterrupted, resumed):
    run, printed = resumed[WITH_DAMAGED_RECORDS]
    for name in ("resolved.yaml", "versions.json", "state.json", "recipe.yaml", "tensorboard"):
        assert re.search(rf"/{name} .*: moved to {name}\.damaged\n", printed), name
        assert (run / name).exists() and (run / f"{name}.damaged").exists()
    assert f"compared with the copy in {NEWEST} instead" in printed
    assert "tokenizer.model is not the tokenizer of the training text: moved to" in printed
    assert "metrics.jsonl: 2 lines were torn, damaged or there twice: moved to" in printed
    assert (run / "metrics.dropped.jsonl").read_bytes().endswith(b"\n".join(NO_ROWS) + b"\n")
    for name in ("resolved.yaml", "recipe.yaml", "checkpoints/tokenizer.model"):
        assert (run / name).read_bytes() == (uninterrupted[1] / name).read_bytes()
    assert json.loads((run / "versions.json").read_text())["layouts"][0]["after step"] == 12


def test_switch_and_start_of_the_decay_are_saved_whatever_the_interval(uninterrupted):
    _, run = uninterrupted
    assert saved_steps(run) == [4, SWITCH, 8, DECAY, 12, 16]
    for step in (SWITCH, 8):
        assert open_checkpoint(run / "checkpoints", iteration=step).args.save_interval == SAVE
    log = (run / "logs" / "rank-0.log").read_text()
    saved = re.findall(r"successfully saved checkpoint from iteration +(\d+)", log)
    assert [int(step) for step in saved] == saved_steps(run)


def test_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(uninterrupted, tmp_path):
    recipe, run = killed_after_step_12(uninterrupted, tmp_path / "run")
    for checkpoint in list_checkpoints(run / "checkpoints"):
        (checkpoint / ".metadata").unlink()
    before = (run / "metrics.jsonl").read_text()
    for nproc in ((), ("--nproc", "1")):
        log = tmp_path / "refused.log"
        arguments = ("train", str(recipe), "--run-folder", str(run), *nproc)
        printed = tiny.run(*arguments, log=log, status=2)
        assert "and none is whole" in printed
        assert "put one back" in printed
    assert (run / "metrics.jsonl").read_text() == before


def test_checkpoint_whose_arguments_cannot_be_read_is_skipped(uninterrupted, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(uninterrupted[1] / "checkpoints", folder)
    overwrite(folder / "iter_0000016", "common_state")
    overwrite(folder / NEWEST, "common_state")
    (problem,) = problems(folder / NEWEST)
    assert problem.startswith("__0_0.distcp: common_state/shard_0_1 is damaged (")
    assert find_start(folder).step == DECAY


def test_run_whose_checkpoints_are_gone_is_refused_also_when_it_was_finished(
    uninterrupted, tmp_path
):
    recipe, run = uninterrupted[0], tmp_path / "run"
    shutil.copytree(uninterrupted[1], run)
    shutil.rmtree(run / "checkpoints")
    # As of a run that is older than the record of its saves.
    (run / "saves.json").unlink()
    before = {path: path.stat().st_mtime for path in run.rglob("*") if path.name != "lock"}
    for command in ("train", "check"):
        log = tmp_path / "refused.log"
        arguments = (command, str(recipe), "--run-folder", str(run))
        (rank,) = tiny.fork_ranks(*arguments, num_ranks=1, log=log)
        assert rank.wait(timeout=300) == 2, log.read_text()
        printed = " ".join(log.read_text().split())
        assert f"{run / 'checkpoints'}: is missing, and this run has saved some before" in printed
        assert "state.json knows step 16" in printed
        assert "another --run-folder to start over" in printed
    changed = {path for path, time in before.items() if path.stat().st_mtime != time}
    assert changed <= {run}
    assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module")
def after_a_full_disk(uninterrupted, tmp_path_factory):
    """A run that could not write a shard; then its folder; then the same run with room again."""
    recipe, run = killed_after_step_12(uninterrupted, tmp_path_factory.mktemp("full") / "run")
    small = 1 << 20
    full = start(
        recipe, run, first=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))
    )
    full.finish(status=1)
    state = json.loads((run / "state.json").read_text())
    left = {path.name: problems(path) for path in list_checkpoints(run / "checkpoints")}
    # As from a killed job of more ranks.
    (run / "checkpoints" / "iter_0000016").mkdir(exist_ok=True)
    (run / "checkpoints" / "iter_0000016" / "__7_0.distcp").write_bytes(b"stale")
    keeping = ("tst.keep-last-checkpoints=1", "save-retain-interval=8")
    printed = start(recipe, run, *keeping).finish()
    return run, state, left, printed


def test_full_disk_is_a_failure_that_leaves_the_earlier_checkpoint_whole(after_a_full_disk):
    run, state, left, _ = after_a_full_disk
    assert state["status"] == "failed"
    # Megatron's writer passes on no more than the class; its log has the words. Which class it is
    # depends on whether the limit is met in Python's write or in that of torch.save.
    assert state["reason"].startswith("rank 0: checkpoint write: RuntimeError(")
    assert re.search("<class '(OSError|RuntimeError)'>", state["reason"])
    assert "\n" not in state["reason"]
    log = (run / "logs" / "rank-0.log").read_text()
    assert re.search("encountered an error: .*(File too large|enforce fail)", log)
    assert (state["step"], state["checkpoint"]) == (12, f"checkpoints/{NEWEST}")
    assert left[NEWEST] == []
    assert left.get("iter_0000016") != []


def test_run_goes_on_exactly_after_a_full_disk(uninterrupted, after_a_full_disk):
    run, *_ = after_a_full_disk
    assert tiny.loss_bits(run) == tiny.loss_bits(uninterrupted[1])


def test_part_of_a_checkpoint_is_gone_before_its_step_is_saved_again(after_a_full_disk):
    run, _, _, printed = after_a_full_disk
    assert re.search("iter_0000016: .* is missing; removed before it is saved again", printed)
    assert not (run / "checkpoints" / "iter_0000016" / "__7_0.distcp").exists()
    assert problems(run / "checkpoints" / "iter_0000016", deep=True) == []


def test_checkpoints_are_kept_by_rule(after_a_full_disk):
    """The last, every eighth, the switch and the start of the decay; the recipe's own interval."""
    run, _, _, printed = after_a_full_disk
    assert saved_steps(run) == [SWITCH, 8, DECAY, 16]
    assert "checkpoints deleted by rule: iter_0000004, iter_0000012" in printed
    assert list((run / "checkpoints").glob(".deleted-*")) == []
