import argparse
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tst_megatron import __version__
from tst_megatron.checkpoint.folder import step_of
from tst_megatron.checkpoint.known_saves import note_save
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.system.files import file_sha256
from tst_megatron.system.packages import package_version
from tst_megatron.training.report import versions as run_versions
from tst_megatron.training.report.versions import write_versions
from tst_megatron.training.run import endings, prepare, saves
from tst_megatron.training.run import folder as run_folder
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.start import check_run, folder_problems
from tst_megatron.training.run.state import ALL_STEPS, STARTED
from tst_megatron.training.run.tokenizer import kept_tokenizer


def small_parser():
    """A few of Megatron's keys, which takes seconds to import."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--recompute-granularity", type=str)
    parser.add_argument("--rerun-mode", type=str, default="validate_results")
    for key in ("train-iters", "seq-length", "global-batch-size", "micro-batch-size"):
        parser.add_argument(f"--{key}", type=int)
    for key in ("save-interval", "save-retain-interval", "tensor-model-parallel-size"):
        parser.add_argument(f"--{key}", type=int)
    for key in ("bf16", "moe-grouped-gemm", "overlap-grad-reduce"):
        parser.add_argument(f"--{key}", action="store_true")
    return parser


KNOWN = Flags(small_parser())


@pytest.fixture
def checked(tmp_path):
    """Stands for a ``CheckedRecipe``: what a run folder reads of one."""
    return make_checked(tmp_path / "source")


def make_checked(folder, *overrides):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "recipe.yaml").write_text(
        "lr: 1.0e-6\ntrain-iters: 10\nseq-length: 8\nglobal-batch-size: 2\n"
        "data: {text: 1}\ntst: {bag-size: 4, superposition-fraction: 0.4}\n"
    )
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    train = SimpleNamespace(text_sha256="ab12")
    path = folder / "tokenizer.model"
    facts = SimpleNamespace(sha256=file_sha256(path))
    manifest = SimpleNamespace(tokenizer_path=path, tokenizer=facts, train=train, test=None)
    corpora = (SimpleNamespace(manifest=manifest),)
    schedule = recipe.schedule()
    return SimpleNamespace(
        recipe=recipe,
        schedule=schedule,
        corpora=corpora,
        flags=(),
        profile_values={"bf16": True},
        known=KNOWN,
        arguments=None,
        arguments_of=lambda megatron: None,
        stream=None,
        environment={},
    )


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "one")


def save_checkpoint(run, step):
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
    (run.checkpoints / f"iter_{step:07d}").mkdir(exist_ok=True)


# --- prepare --------------------------------------------------------------------------------------


def test_nothing_is_written_before_prepare(run, checked):
    assert folder_problems(run, checked, fresh=True) == []
    assert run.state() is None
    assert run.last_checkpoint() is None
    assert not run.path.exists()


def test_prepare_makes_folders_and_keeps_what_describes_the_run(run, checked):
    prepare.prepare(run, run_plan(checked))
    for folder in (run.checkpoints, run.tensorboard, run.logs, run.report):
        assert folder.is_dir()
    assert (run.path / "recipe.yaml").read_bytes() == checked.recipe.path.read_bytes()
    assert (run.checkpoints / "tokenizer.model").read_bytes() == b"pieces"
    kept = kept_tokenizer(run.checkpoints, checked.corpora[0].manifest)
    assert kept == run.checkpoints / "tokenizer.model"
    assert run.log(3) == run.path / "logs" / "rank-3.log"
    resolved = yaml.safe_load((run.path / "resolved.yaml").read_text())
    assert resolved["lr"] == 1e-6
    assert resolved["data"] == {"text": 1.0}
    assert resolved["tst"]["bag-size"] == 4
    assert resolved["phases"] == [[4, 4], [1, 6]]
    assert resolved["training text"] == ["ab12"]


def test_what_the_profile_gave_is_kept_for_the_reader_and_not_compared(run, checked):
    prepare.prepare(run, run_plan(checked))
    kept = yaml.safe_load((run.path / "resolved.yaml").read_text())
    assert kept["given by the profile"] == {"bf16": True}
    # As when the expert-parallel size changes, which takes flags of experts along.
    checked.profile_values = {"bf16": True, "moe-grouped-gemm": True}
    assert folder_problems(run, checked, fresh=False) == []


def test_prepared_folder_takes_the_same_recipe_again(run, checked):
    prepare.prepare(run, run_plan(checked))
    assert folder_problems(run, checked, fresh=False) == []
    check_run(run, checked, fresh=False)
    before = (run.path / "resolved.yaml").read_text()
    prepare.prepare(run, run_plan(checked))
    assert (run.path / "resolved.yaml").read_text() == before


# --- another run's folder -------------------------------------------------------------------------


def test_each_difference_is_named_with_both_values(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    other = make_checked(tmp_path / "other", "lr=0.5", "tst.superposition-fraction=0.5", "seed=7")
    other.corpora[0].manifest.train.text_sha256 = "cd34"
    problems = {
        problem.split(":")[0]: problem for problem in folder_problems(run, other, fresh=False)
    }
    assert sorted(problems) == [
        "lr",
        "phases",
        "seed",
        "training text",
        "tst.superposition-fraction",
    ]
    assert problems["lr"] == (
        "lr: this run was started with 1e-06, and the recipe now says 0.5. To go on with this run, "
        "add lr=1.0e-06; to start another, name another --run-folder"
    )
    assert (
        "started with [[4, 4], [1, 6]], and the recipe now says [[4, 5], [1, 5]]"
        in (problems["phases"])
    )
    assert "started with nothing, and the recipe now says 7" in problems["seed"]
    assert "['ab12'], and the recipe now says ['cd34']" in problems["training text"]


def test_key_that_decides_no_number_may_change(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    other = make_checked(tmp_path / "other", "rerun-mode=disabled")
    assert folder_problems(run, other, fresh=False) == []


def test_key_that_was_taken_away_is_named(run, tmp_path):
    prepare.prepare(run, run_plan(make_checked(tmp_path / "with", "seed=7")))
    (problem,) = folder_problems(run, make_checked(tmp_path / "without"), fresh=False)
    assert problem.startswith("seed: this run was started with 7, and the recipe now says nothing.")


def test_check_run_raises_with_all_differences(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    with pytest.raises(RecipeError) as caught:
        check_run(run, make_checked(tmp_path / "other", "lr=1", "seed=2"), fresh=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["lr", "seed"]


def test_fresh_refuses_a_folder_with_files_and_takes_an_empty_one(run, checked):
    run.path.mkdir(parents=True)
    assert folder_problems(run, checked, fresh=True) == []
    prepare.prepare(run, run_plan(checked))
    (problem,) = folder_problems(run, checked, fresh=True)
    assert problem == f"--fresh: {run.path} is not empty. Name another folder, or delete it"


def test_key_that_is_newer_than_the_run_has_its_default(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    path = run.path / "resolved.yaml"
    resolved = yaml.safe_load(path.read_text())
    del resolved["tst"]["linear-cross-entropy"]
    path.write_text(yaml.safe_dump(resolved))
    check_run(run, checked, fresh=False)
    changed = make_checked(tmp_path / "other", "tst.linear-cross-entropy=true")
    with pytest.raises(RecipeError, match="tst.linear-cross-entropy: this run was started with"):
        check_run(run, changed, fresh=False)


def test_folder_that_is_no_run_is_refused(run, checked):
    run.path.mkdir(parents=True)
    (run.path / "letter.txt").write_text("dear")
    (problem,) = folder_problems(run, checked, fresh=False)
    assert problem.startswith(f"--run-folder: {run.path} has files and no resolved.yaml")


def test_start_killed_at_any_moment_of_prepare_does_not_bar_the_next(run, checked, monkeypatch):
    """Before each system call that writes: a new folder, a flush of what is beside, a rename."""
    other = make_checked(run.path.parent.parent / "other", "seed=7")
    other.recipe.path.write_text("of an earlier try")
    for num_calls in range(100):
        with monkeypatch.context() as patch:
            left = [num_calls]

            def killed(call, left=left):
                def counted(*args, **kwargs):
                    if not left[0]:
                        raise KeyboardInterrupt
                    left[0] -= 1
                    return call(*args, **kwargs)

                return counted

            for place, name in ((Path, "mkdir"), (Path, "replace"), (os, "fsync")):
                patch.setattr(place, name, killed(getattr(place, name)))
            try:
                prepare.prepare(run, run_plan(other))
                break
            except KeyboardInterrupt:
                pass
        if not (run.path / "resolved.yaml").exists():
            assert folder_problems(run, checked, fresh=False) == [], num_calls
            killed_run = run
            run = RunFolder(run.path.parent / str(num_calls))
            if killed_run.path.exists():
                prepare.prepare(killed_run, run_plan(checked))
                assert killed_run.recipe.read_bytes() == checked.recipe.path.read_bytes()
        else:
            assert folder_problems(run, other, fresh=False) == []
    assert num_calls > 10


@pytest.mark.parametrize(
    "path",
    ["checkpoints/iter_0000004/common.pt", "logs/rank-0.log", "checkpoints/recipe.yaml", "data/x"],
)
def test_folder_with_more_than_prepare_makes_is_no_half_run(run, checked, path):
    prepare.prepare(run, run_plan(checked))
    (run.path / "resolved.yaml").unlink()
    (run.path / path).parent.mkdir(exist_ok=True)
    (run.path / path).write_text("more")
    (problem,) = folder_problems(run, checked, fresh=False)
    assert problem.endswith("has files and no resolved.yaml, so it is not a run. Name another")


@pytest.mark.parametrize("fresh", [True, False])
def test_folder_with_a_plan_is_new_and_keeps_it(run, checked, fresh):
    run.path.mkdir(parents=True)
    run.plan.write_text("{}")
    assert folder_problems(run, checked, fresh=fresh) == []
    prepare.prepare(run, run_plan(checked))
    assert run.plan.read_text() == "{}"
    # As a start leaves it that was killed before its last write.
    run.resolved.unlink()
    assert prepare.is_half_prepared(run)


@pytest.mark.parametrize("fresh", [True, False])
def test_folder_with_what_a_job_script_made_before_the_first_start_is_new(run, checked, fresh):
    (run.slurm / "logs").mkdir(parents=True)
    (run.slurm / "events.tsv").write_text("2026-11-25T21:20:06Z\t811\tstart\t0\t\n")
    run.stop_file.touch()
    assert folder_problems(run, checked, fresh=fresh) == []


def test_start_killed_in_prepare_behind_a_job_script_does_not_bar_the_next(run, checked):
    prepare.prepare(run, run_plan(checked))
    (run.path / "resolved.yaml").unlink()
    run.slurm.mkdir()
    (run.slurm / "events.tsv").touch()
    run.stop_file.touch()
    assert folder_problems(run, checked, fresh=False) == []
    (run.path / "letter.txt").write_text("dear")
    assert len(folder_problems(run, checked, fresh=False)) == 1


@pytest.mark.parametrize("fresh", [True, False])
def test_file_in_place_of_the_folder_is_refused(run, checked, fresh):
    run.path.parent.mkdir(parents=True)
    run.path.write_text("a file")
    (problem,) = folder_problems(run, checked, fresh=fresh)
    assert str(run.path) in problem
    assert "not a folder" in problem


@pytest.mark.parametrize("name", [".", "checkpoints"])
@pytest.mark.parametrize("fresh", [True, False])
def test_dangling_link_is_named_with_where_it_leads(run, checked, name, fresh):
    if name != ".":
        run.path.mkdir(parents=True)
    run.path.parent.mkdir(exist_ok=True, parents=True)
    (run.path / name).symlink_to("/scratch/purged")
    (problem,) = folder_problems(run, checked, fresh=fresh)
    assert problem.startswith(
        f"{run.path / name}: is a link to /scratch/purged, which is not there"
    )
    with pytest.raises(RecipeError, match="is not there. Bring that back"), run.held(say=print):
        pass


def test_link_to_a_folder_elsewhere_is_used(run, checked, tmp_path):
    (tmp_path / "scratch").mkdir()
    run.path.mkdir(parents=True)
    run.checkpoints.symlink_to(tmp_path / "scratch")
    assert folder_problems(run, checked, fresh=False) == []
    prepare.prepare(run, run_plan(checked))
    assert (tmp_path / "scratch" / "tokenizer.model").exists()


# --- one start at a time --------------------------------------------------------------------------


def test_refused_start_leaves_no_folder_that_it_made(run, checked):
    with pytest.raises(RecipeError), run.held(say=print):
        raise RecipeError(["no such key"])
    assert not run.path.parent.exists()
    with pytest.raises(RecipeError), run.held(say=print):
        prepare.prepare(run, run_plan(checked))
        raise RecipeError(["later"])
    assert run.resolved.exists()


@pytest.mark.parametrize("fresh", [True, False])
def test_folder_that_was_held_and_nothing_else_is_new(run, checked, fresh):
    with run.held(say=print):
        run.join()
        assert folder_problems(run, checked, fresh=fresh) == []
        assert run.user().process == os.getpid()
    assert {path.name for path in run.path.iterdir()} == {"lock", "lock-ranks"}
    assert folder_problems(run, checked, fresh=fresh) == []


def test_start_killed_in_prepare_leaves_locks_that_bar_nobody(run, checked):
    with run.held(say=print):
        prepare.prepare(run, run_plan(checked))
        (run.path / "resolved.yaml").unlink()
    assert folder_problems(run, checked, fresh=False) == []


# --- checkpoints that are gone --------------------------------------------------------------------


GONE = {
    "empty": lambda run: None,
    "missing": lambda run: shutil.rmtree(run.checkpoints),
    "unfinished": lambda run: (run.checkpoints / "iter_0000010").mkdir(),
}


@pytest.mark.parametrize("name", GONE)
def test_run_that_has_saved_is_not_started_over(run, checked, name):
    prepare.prepare(run, run_plan(checked))
    note_save(run.path, 8)
    GONE[name](run)
    found = "is missing" if name == "missing" else "holds no "
    for ask in (saves.find_start, saves.repair):
        with pytest.raises(RecipeError) as refused:
            ask(run, run_plan(checked))
        (problem,) = refused.value.problems
        assert problem.startswith(f"{run.checkpoints}: {found}")
        assert "this run has saved some before (saves.json knows step 8)" in problem
        assert "mount what they are on, to go on" in problem
        assert "another --run-folder to start over" in problem
    assert (run.checkpoints / "iter_0000010").exists() == (name == "unfinished")


def test_run_that_never_saved_starts_over(run, checked):
    prepare.prepare(run, run_plan(checked))
    (run.checkpoints / "iter_0000010").mkdir()
    assert saves.find_start(run, run_plan(checked)).step == 0
    assert saves.repair(run, run_plan(checked)).step == 0
    assert not (run.checkpoints / "iter_0000010").exists()


def test_older_folder_is_told_once_what_it_had_saved(run, checked):
    prepare.prepare(run, run_plan(checked))
    run.saves.unlink()
    save_checkpoint(run, 8)
    prepare.prepare(run, run_plan(checked))
    assert run.saves.read_text() == '{"newest completed save": 8}\n'
    prepare.prepare(run, run_plan(checked))
    shutil.rmtree(run.checkpoints)
    prepare.prepare(run, run_plan(checked))
    with pytest.raises(RecipeError, match="saves.json knows step 8"):
        saves.find_start(run, run_plan(checked))


# --- waiting for the first rank -------------------------------------------------------------------


def test_wait_returns_at_once_when_prepared(run, checked, monkeypatch):
    prepare.prepare(run, run_plan(checked))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    prepare.wait_until_prepared(run, seconds=0.0)


def test_wait_ends_when_the_first_rank_has_prepared(run, checked, monkeypatch):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            prepare.prepare(run, run_plan(checked))

    monkeypatch.setattr(time, "sleep", sleep)
    prepare.wait_until_prepared(run, seconds=60.0)
    assert len(waits) == 2


def test_wait_is_for_the_first_rank_of_this_start(run, checked, monkeypatch):
    """A folder that another start prepared, or works in, is not this one's yet."""
    monkeypatch.setenv("MASTER_ADDR", "node1")
    for port, is_ours in (("29500", True), ("29501", False)):
        monkeypatch.setenv("MASTER_PORT", "29500")
        with run.held(say=print):
            prepare.prepare(run, run_plan(checked))
            monkeypatch.setenv("MASTER_PORT", port)
            if is_ours:
                prepare.wait_until_prepared(run, seconds=0.0, is_held=False)
            else:
                with pytest.raises(RuntimeError, match="was not prepared by rank 0"):
                    prepare.wait_until_prepared(run, seconds=0.0, is_held=False)
                prepare.wait_until_prepared(run, seconds=0.0, is_held=True)
        # Of a start that has ended, whose ranks met at the same place.
        with pytest.raises(RuntimeError, match="was not prepared by rank 0"):
            prepare.wait_until_prepared(run, seconds=0.0, is_held=False)


def test_wait_that_takes_too_long_says_where_and_how_long(run):
    with pytest.raises(RuntimeError, match="was not prepared by rank 0 within 0 s.*share") as error:
        prepare.wait_until_prepared(run, seconds=0.01)
    assert str(error.value).startswith(str(run.path))


# --- state and checkpoints ------------------------------------------------------------------------


def test_last_checkpoint_is_the_one_megatron_tracks(run):
    save_checkpoint(run, 4)
    save_checkpoint(run, 12)
    assert run.last_checkpoint() == run.checkpoints / "iter_0000012"
    assert step_of(run.last_checkpoint()) == 12


def test_run_is_finished_when_the_checkpoint_of_its_last_step_is_whole(run, checked, monkeypatch):
    """Every rank asks, also before the first has repaired the tracker file: it is not read."""
    problems = []
    monkeypatch.setattr(saves, "problems", lambda *_, **__: problems)
    assert not saves.is_finished(run, run_plan(checked))
    save_checkpoint(run, 9)
    assert not saves.is_finished(run, run_plan(checked))
    save_checkpoint(run, 10)
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("")
    assert saves.is_finished(run, run_plan(checked))
    problems.append(".metadata is missing")
    assert not saves.is_finished(run, run_plan(checked))


def test_last_checkpoint_that_goes_while_it_is_read_is_no_whole_one(run, checked, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("metadata.json")

    save_checkpoint(run, 10)
    monkeypatch.setattr(saves, "problems", gone)
    assert not saves.is_finished(run, run_plan(checked))


@pytest.mark.parametrize("text", [None, "", "twelve", "13"])
def test_tracker_that_names_no_checkpoint_is_none(run, text):
    save_checkpoint(run, 12)
    tracker = run.checkpoints / "latest_checkpointed_iteration.txt"
    tracker.unlink() if text is None else tracker.write_text(text)
    assert run.last_checkpoint() is None


def test_how_often_to_save_and_what_to_keep_may_change(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    changes = ("save-interval=7", "save-retain-interval=14", "tst.keep-last-checkpoints=2")
    assert folder_problems(run, make_checked(tmp_path / "other", *changes), fresh=False) == []
    (problem,) = folder_problems(
        run, make_checked(tmp_path / "third", *changes, "lr=1"), fresh=False
    )
    assert problem.startswith("lr:")


@pytest.mark.parametrize(
    "change",
    ["tensor-model-parallel-size=2", "overlap-grad-reduce=true", "recompute-granularity=full"],
)
def test_layout_may_change_and_the_folder_says_what_the_last_start_had(
    run, checked, tmp_path, change
):
    prepare.prepare(run, run_plan(checked))
    other = make_checked(tmp_path / "other", change)
    assert folder_problems(run, other, fresh=False) == []
    prepare.prepare(run, run_plan(other))
    key, _, value = change.partition("=")
    assert str(yaml.safe_load((run.path / "resolved.yaml").read_text())[key]).lower() == value
    assert run.recipe.read_bytes() == checked.recipe.path.read_bytes()


def test_micro_batch_size_is_no_layout(run, checked, tmp_path):
    prepare.prepare(run, run_plan(checked))
    (problem,) = folder_problems(
        run, make_checked(tmp_path / "other", "micro-batch-size=2"), fresh=False
    )
    assert problem.startswith("micro-batch-size: this run was started with nothing")


def test_start_finishes_an_interrupted_delete(run, checked):
    (run.checkpoints / ".deleted-iter_0000004").mkdir(parents=True)
    assert saves.repair(run, run_plan(checked)).step == 0
    assert list(run.checkpoints.iterdir()) == []


def test_chain_of_jobs_that_are_killed_in_their_first_saves_is_never_refused(run, checked):
    """Each at another step, as a stop signal makes it."""
    for step in (4, 3, 2, 1):
        (run.checkpoints / f"iter_{step:07d}").mkdir(parents=True)
        start = saves.repair(run, run_plan(checked))
        assert start.step == 0
        assert start.notes[0] == f"iter_{step:07d}: metadata.json is missing; skipped"
        assert list(run.checkpoints.glob("iter_*")) == []


def test_state_tells_how_the_run_stands(run):
    run.path.mkdir(parents=True)
    run.write_state("failed", reason="KeyError('x')", step=0, device="cpu", exit_status=1)
    assert run.state() == {
        "status": "failed",
        "reason": "KeyError('x')",
        "step": 0,
        "checkpoint": None,
        "device": "cpu",
        "exit_status": 1,
        "sick_node": None,
    }
    save_checkpoint(run, 4)
    run.write_state("stopped", reason="asked to stop", step=4, device="cpu", exit_status=75)
    assert run.state()["exit_status"] == 75
    assert run.state()["checkpoint"] == "checkpoints/iter_0000004"
    assert json.loads((run.path / "state.json").read_text()) == run.state()


def fail(run, reason):
    run.write_state("failed", reason=reason, step=0, device="cpu", exit_status=1)


def test_first_failure_of_a_start_stands(run):
    """Rank 0 fails too, of the closed connection, and rank 1 knew why."""
    run.path.mkdir(parents=True)
    fail(run, STARTED)
    before = run.state()
    assert not endings.has_failed_since(run, before)
    fail(run, "rank 1: OSError(28, 'No space left on device')")
    assert endings.has_failed_since(run, before)


def test_failure_of_an_earlier_start_does_not_stand(run):
    """Rank 1 may begin, and fail, before rank 0 has said that this start began."""
    run.path.mkdir(parents=True)
    assert not endings.has_failed_since(run, run.state())
    fail(run, "rank 1: OSError(28, 'No space left on device')")
    before = run.state()
    assert not endings.has_failed_since(run, before)
    fail(run, STARTED)
    assert not endings.has_failed_since(run, before)


@pytest.mark.parametrize(
    ("overrides", "has_test", "rows", "is_cut_off"),
    [
        (["eval-interval=5"], False, ["step"], True),
        (["eval-interval=5"], False, ["step", "validation"], False),
        (["eval-interval=5"], True, ["step", "validation"], True),
        (["eval-interval=5"], True, ["step", "validation", "test"], False),
        (["eval-interval=5", "eval-iters=0"], True, ["step"], False),
        ([], True, ["step"], False),
    ],
)
def test_finished_run_says_that_its_last_evaluation_was_cut_off(
    run, tmp_path, overrides, has_test, rows, is_cut_off
):
    checked = make_checked(tmp_path / "evaluated", *overrides)
    checked.corpora[0].manifest.test = object() if has_test else None
    save_checkpoint(run, 10)
    earlier = [("validation", 5), ("test", 5)]
    run.metrics.write_text(
        "".join(
            json.dumps({"event": event, "step": step}) + "\n"
            for event, step in [*earlier, *((event, 10) for event in rows)]
        )
    )
    endings.write_finished(run, run_plan(checked))
    state = run.state()
    assert (state["status"], state["step"], state["exit_status"]) == ("finished", 10, 0)
    cut_off = "all steps are done; the last evaluation was cut off"
    assert state["reason"] == (cut_off if is_cut_off else ALL_STEPS)


def test_state_and_recipe_are_written_whole(run, checked, monkeypatch):
    """By ``write_beside``, so that a killed process leaves no half of them."""
    written = []
    for module in (prepare, run_folder, run_versions):
        monkeypatch.setattr(
            module, "write_beside", lambda path, text: written.append((path.name, text[-1]))
        )
    prepare.prepare(run, run_plan(checked))
    run.write_state("finished", reason="", step=1, device="cpu", exit_status=0)
    write_versions(run.versions, device="cpu", world_size=1, layout={"number of ranks": 1}, step=0)
    assert written == [("resolved.yaml", "\n"), ("state.json", "\n"), ("versions.json", "\n")]
    assert (run.path / "saves.json").read_text() == '{"newest completed save": 0}\n'


def test_versions_name_every_package_device_and_size(run):
    run.path.mkdir(parents=True)
    write_versions(run.versions, device="cpu", world_size=2, layout={"number of ranks": 2}, step=0)
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["tst_megatron"] == __version__
    assert versions["numpy"] == package_version("numpy") is not None
    assert set(run_versions.PACKAGES) < set(versions)
    assert (versions["device"], versions["world size"]) == ("cpu", 2)
    assert package_version("a-package-that-is-not") is None


def test_versions_name_the_layout_of_every_step(run):
    """A start that saved nothing leaves no step behind; one in the same layout adds nothing."""
    run.path.mkdir(parents=True)
    seen = []
    for ranks, step in ((1, 0), (2, 0), (2, 8), (4, 12), (1, 12), (1, 20), (2, 10)):
        write_versions(
            run.versions,
            device="cpu",
            world_size=ranks,
            layout={"number of ranks": ranks},
            step=step,
        )
        layouts = json.loads((run.path / "versions.json").read_text())["layouts"]
        seen.append(
            [(entry["after step"], entry["layout"]["number of ranks"]) for entry in layouts]
        )
    assert seen == [
        [(0, 1)],
        [(0, 2)],
        [(0, 2)],
        [(0, 2), (12, 4)],
        [(0, 2), (12, 1)],
        [(0, 2), (12, 1)],
        [(0, 2)],
    ]
