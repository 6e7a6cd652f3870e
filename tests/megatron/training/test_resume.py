"""A resumed run goes on exactly as if it had not been stopped, in both phases."""

import json
import shutil
import signal
import time
from dataclasses import replace
from itertools import batched

import pytest
import tiny
import torch
from interrupted import interrupted_at

from tst_megatron.cli.recipes import check
from tst_megatron.data.stream import cursor
from tst_megatron.data.stream.cursor import stream_facts
from tst_megatron.megatron.repairs import torch_adam
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.training.report.evaluations import list_evaluations
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.start import check_checkpoint
from tst_megatron.training.train import train_run

SWITCH, STEPS = 16, 36

RESUMED = {
    "inside superposition": 12,
    "after the last superposition step": SWITCH,
    "after the first recovery step": SWITCH + 1,
    "inside recovery": 24,
}
"""Steps completed when a run was interrupted; all see ten steps or more after it."""


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    """A whole run under expert parallelism with the distributed optimizer, saved at every step."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = tiny.write_recipe(
        folder / "tst.yaml",
        text,
        {"bag-size": 4, "superposition-steps": SWITCH},
        expert_model_parallel_size=2,
        train_iters=STEPS,
        save_interval=1,
        eval_interval=8,
    )
    log = folder / "train.log"
    tiny.wait(start(recipe, folder / "run", log), log)
    return recipe, folder / "run"


def start(recipe, run, log):
    arguments = ("train", str(recipe), "--run-folder", str(run))
    return tiny.fork_ranks(*arguments, num_ranks=2, log=log)


def last_step(run):
    return tiny.metrics(run)[-1]["step"]


@pytest.fixture(scope="module")
def resumed(uninterrupted, tmp_path_factory):
    """Runs resumed from each of ``RESUMED``, two at a time."""
    recipe, run = uninterrupted
    folder = tmp_path_factory.mktemp("resumed")
    for pair in batched(RESUMED.values(), 2):
        for step in pair:
            interrupted_at(step, run, folder / str(step))
        logs = {step: folder / f"{step}.log" for step in pair}
        ranks = {step: start(recipe, folder / str(step), logs[step]) for step in pair}
        for step in pair:
            tiny.wait(ranks[step], logs[step])
    return folder


def assert_equal_to_the_end(run, after):
    before = tiny.metrics(run)
    assert [row["step"] for row in after] == list(range(1, STEPS + 1))
    assert tiny.bits_of(after) == tiny.bits_of(before)


@pytest.mark.parametrize("where", RESUMED)
def test_losses_after_a_resume_are_bit_identical(uninterrupted, resumed, where):
    _, run = uninterrupted
    folder = resumed / str(RESUMED[where])
    assert_equal_to_the_end(run, tiny.metrics(folder))
    dropped = (folder / "metrics.dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped[0])["step"] == RESUMED[where] + 1
    assert tiny.bits_of(tiny.metrics(folder, "validation")) == tiny.bits_of(
        tiny.metrics(run, "validation")
    )
    kept, expected = (list_evaluations(each / "evaluations") for each in (folder, run))
    assert list(kept) == list(expected) == [8, 16, 24, 32, STEPS]
    for step, path in kept.items():
        assert path.read_bytes() == expected[step].read_bytes()


def test_two_resumes_in_a_row_are_bit_identical(uninterrupted, tmp_path):
    """Stopped by a signal a few steps after a first resume, and resumed once more."""
    recipe, run = uninterrupted
    folder, log = tmp_path / "run", tmp_path / "log"
    interrupted_at(8, run, folder, more_steps=0, torn="")
    ranks = start(recipe, folder, log)
    deadline = time.monotonic() + 600
    while last_step(folder) < 10:
        assert time.monotonic() < deadline and ranks[0].poll() is None, log.read_text()
        time.sleep(0.02)
    ranks[0].send_signal(signal.SIGTERM)
    tiny.wait(ranks, log, status=75)
    assert 10 <= last_step(folder) < STEPS
    tiny.wait(start(recipe, folder, log), log)
    assert_equal_to_the_end(run, tiny.metrics(folder))


def test_torn_line_after_the_loaded_step_is_moved_aside(resumed):
    dropped = (resumed / "12" / "metrics.dropped.jsonl").read_text().splitlines()
    assert dropped[-1] == '{"event": "st'
    assert len(dropped) > 1


def test_phases_log_their_loss_under_their_own_name(uninterrupted):
    _, run = uninterrupted
    for row in tiny.metrics(run):
        in_superposition = row["step"] <= SWITCH
        assert ("bag loss" in row) == in_superposition
        assert ("lm loss" in row) == (not in_superposition)
        assert row["bag size"] == (4 if in_superposition else 1)
    log = (run / "logs" / "rank-1.log").read_text()
    lines = [line for line in log.splitlines() if " iteration " in line and "elapsed" in line]
    assert len(lines) == STEPS
    for number, line in enumerate(lines, start=1):
        assert ("bag loss" in line) == (number <= SWITCH)
        assert (" lm loss" in line) == (number > SWITCH)


def test_run_learns_through_both_phases_and_counts_raw_tokens(uninterrupted):
    _, run = uninterrupted
    rows = tiny.metrics(run)
    assert rows[SWITCH - 1]["bag loss"] < rows[0]["bag loss"] - 0.3
    assert rows[-1]["lm loss"] < rows[0]["bag loss"] - 0.8
    assert rows[SWITCH - 1]["raw tokens"] == SWITCH * 8 * 32 * 4
    assert rows[-1]["raw tokens"] == (SWITCH * 4 + STEPS - SWITCH) * 8 * 32
    assert rows[-1]["latent positions"] == STEPS * 8 * 32


def test_each_parameter_has_an_adam_step_of_its_own_after_a_load():
    """Loaded, they share one tensor upstream, and Adam counts each step once per parameter."""

    class Inner:
        def __init__(self):
            step = torch.tensor(6.0)
            self.state = {name: {"step": step} for name in ("a", "b", "c")}

    class Outer:
        optimizer = Inner()

    loaded = torch_adam.with_a_step_of_its_own(lambda self, state_dict: None)
    loaded(Outer, {})
    steps = [state["step"] for state in Outer.optimizer.state.values()]
    assert len({step.data_ptr() for step in steps}) == 3
    assert [float(step) for step in steps] == [6.0] * 3


def test_finished_run_is_left_alone(uninterrupted, capsys):
    recipe, run = uninterrupted
    before = (run / "metrics.jsonl").read_text()
    assert (run / "report" / "losses.png").exists()
    assert train_run(recipe, [], run, nproc=2) == 0
    said = capsys.readouterr().out
    assert "this run is finished" in said and f"export {run} {run}/hf" in said
    check(recipe, nproc=2, run=run)
    assert "is finished: a start would do nothing" in capsys.readouterr().out.replace("\n", " ")
    assert (run / "metrics.jsonl").read_text() == before


def test_another_recipe_in_the_same_run_folder_is_refused(uninterrupted):
    recipe, run = uninterrupted
    with pytest.raises(RecipeError) as refused:
        train_run(recipe, ["lr=0.001", "tst.superposition-steps=12"], run, nproc=2)
    problems = "\n".join(refused.value.problems)
    assert "lr: this run was started with 0.01, and the recipe now says 0.001" in problems
    assert "phases: this run was started with [[4, 16], [1, 20]]" in problems


# --- the cursor ----------------------------------------------------------------------------------


def checked_with(recipe, *overrides):
    from tst_megatron.training.check.check_recipe import check_recipe

    return check_recipe(load_recipe(recipe, overrides), world_size=2)


def test_checkpoint_holds_where_the_stream_stands_and_what_decides_it(uninterrupted):
    from tst_megatron.megatron.distributed_checkpoint.model import read_saved_state

    recipe, run = uninterrupted
    for step, phase, raw_tokens in ((12, 0, 12 * 4), (SWITCH, 1, 16 * 4), (24, 1, 16 * 4 + 8)):
        state = read_saved_state(run / "checkpoints" / f"iter_{step:07d}")
        tst = state["args"].tst
        assert tst["cursor"] == {
            "step": step,
            "phase": phase,
            "samples": step * 8,
            "raw tokens": raw_tokens * 8 * 32,
            "chunks of corpora": [raw_tokens * 8],
        }
        checked = checked_with(recipe)
        assert tst["stream"] == stream_facts(checked.stream, checked.corpora)
        check_checkpoint(run_plan(checked), run / "checkpoints" / f"iter_{step:07d}")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=99", "seed: the checkpoint was trained with 1234, and this run has 99"),
        ("seq-length=16", "seq-length: the checkpoint was trained with 32, and this run has 16"),
        ("global-batch-size=16", "global-batch-size: the checkpoint was trained with 8"),
        ("tst.stream-unit-bags=8", "tst.stream-unit-bags: the checkpoint was trained with 4"),
        (
            "tst.superposition-steps=15",
            "phases: the checkpoint was trained with [[4, 16], [1, 20]], and this run has "
            "[[4, 15], [1, 21]]",
        ),
    ],
)
def test_other_stream_is_refused_with_what_differs(uninterrupted, override, key):
    recipe, run = uninterrupted
    with pytest.raises(RecipeError) as refused:
        check_checkpoint(
            run_plan(checked_with(recipe, override)), run / "checkpoints" / "iter_0000012"
        )
    (problem,) = refused.value.problems
    assert problem.startswith(key)


def test_run_of_another_order_is_refused_with_the_version_to_finish_it(uninterrupted, monkeypatch):
    recipe, run = uninterrupted
    monkeypatch.setattr(cursor, "ORDER_VERSION", cursor.ORDER_VERSION + 1)
    with pytest.raises(RecipeError) as refused:
        check_checkpoint(run_plan(checked_with(recipe)), run / "checkpoints" / "iter_0000012")
    (problem,) = refused.value.problems
    assert problem.startswith("order version: the run was begun with an earlier version of tst-meg")
    assert problem.endswith("Finish the run with that version of tst-megatron")


def test_other_text_and_tokenizer_are_refused_with_what_differs(uninterrupted):
    recipe, run = uninterrupted
    checked = checked_with(recipe)
    (corpus,) = checked.corpora
    train = replace(corpus.manifest.train, bin_fingerprint="other")
    manifest = replace(
        corpus.manifest, train=train, tokenizer=replace(corpus.manifest.tokenizer, sha256="another")
    )
    changed = replace(checked, corpora=(replace(corpus, manifest=manifest, weight=2.0),))
    with pytest.raises(RecipeError) as refused:
        check_checkpoint(run_plan(changed), run / "checkpoints" / "iter_0000012")
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "tokenizer",
        "weight of corpus 1",
        "train.bin of corpus 1",
    ]


def test_text_written_anew_under_its_name_ends_a_resume_before_it_starts(uninterrupted, tmp_path):
    """The manifest is unchanged, so only the file itself can tell."""
    recipe, run = uninterrupted
    shutil.copytree(run, tmp_path / "run")
    for checkpoint in sorted((tmp_path / "run" / "checkpoints").glob("iter_*"))[20:]:
        shutil.rmtree(checkpoint)
    (corpus,) = checked_with(recipe).corpora
    tokens = corpus.manifest.train.prefix.with_suffix(".bin")
    before = tokens.read_bytes()
    try:
        tokens.write_bytes(before[2:] + before[:2])
        with pytest.raises(RecipeError, match=r"train\.bin: its content is not what manifest.json"):
            train_run(recipe, [], tmp_path / "run", nproc=2)
    finally:
        tokens.write_bytes(before)
