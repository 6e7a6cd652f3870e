"""Whole runs with switches: three bag sizes, resets at the switch, a resume exactly there."""

import re

import pytest
import tiny
import torch
from interrupted import interrupted_at

SWITCH, STEPS, LEARNING_RATE, MIN_RATE = 6, 12, 1e-3, 1e-4
WARM_UP, DECAY = 2, 4
SCHEDULE = [[4, 3], [2, 3], [1, 6]]
RESUMED = {"at a change of the bag size": 3, "at the switch": SWITCH}


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory):
    return tiny.write_recipe(
        tmp_path_factory.mktemp("recipe") / "tst.yaml",
        text,
        {"schedule": SCHEDULE, "reset-embeddings": True, "reset-optimizer": True},
        expert_model_parallel_size=2,
        bf16=True,
        dist_ckpt_optim_fully_reshardable=True,
        train_iters=STEPS,
        save_interval=1,
        eval_interval=6,
        lr=LEARNING_RATE,
        min_lr=MIN_RATE,
        lr_warmup_iters=WARM_UP,
        lr_wsd_decay_iters=DECAY,
    )


def start(recipe, run, log):
    return tiny.fork_ranks("train", str(recipe), "--run-folder", str(run), num_ranks=2, log=log)


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    tiny.wait(start(recipe, folder / "run", folder / "log"), folder / "log")
    return folder / "run"


@pytest.fixture(scope="module")
def resumed(recipe, uninterrupted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    ranks = {}
    for step in RESUMED.values():
        interrupted_at(step, uninterrupted, folder / str(step))
        ranks[step] = start(recipe, folder / str(step), folder / f"{step}.log")
    for step in RESUMED.values():
        tiny.wait(ranks[step], folder / f"{step}.log")
    return folder


def test_metrics_name_every_bag_size_and_count_its_tokens(uninterrupted):
    rows = tiny.metrics(uninterrupted)
    assert [row["bag size"] for row in rows] == [4] * 3 + [2] * 3 + [1] * 6
    assert [("bag loss" in row, "lm loss" in row) for row in rows] == (
        [(True, False)] * SWITCH + [(False, True)] * 6
    )
    per_step = 8 * 32
    assert rows[-1]["raw tokens"] == per_step * (3 * 4 + 3 * 2 + 6)


@pytest.mark.parametrize("where", RESUMED)
def test_resume_is_bit_identical(uninterrupted, resumed, where):
    folder = resumed / str(RESUMED[where])
    for event in ("step", "validation"):
        assert tiny.loss_bits(folder, event) == tiny.loss_bits(uninterrupted, event)


def rate_of_update(num_updates):
    """The schedule as docs/profiles.md has it: from 0, level, and never quite to min-lr."""
    if num_updates <= WARM_UP:
        return LEARNING_RATE * num_updates / WARM_UP
    decayed = max(0, num_updates - (STEPS - DECAY))
    return LEARNING_RATE - (LEARNING_RATE - MIN_RATE) * decayed / DECAY


def test_learning_rate_is_the_one_the_step_was_made_with(uninterrupted, resumed):
    wanted = {step: rate_of_update(step - 1) for step in range(1, STEPS + 1)}
    assert wanted[1] == 0
    assert wanted[STEPS] == pytest.approx(MIN_RATE + (LEARNING_RATE - MIN_RATE) / DECAY)
    for run in (uninterrupted, *(resumed / str(step) for step in RESUMED.values())):
        shown = {row["step"]: row["learning-rate"] for row in tiny.metrics(run)}
        # Megatron takes it through a 32-bit tensor.
        assert shown == pytest.approx(wanted, rel=1e-7, abs=0)
        log = (run / "logs" / "rank-1.log").read_text()
        printed = dict(re.findall(r"iteration +(\d+)/.*learning rate: (\S+)", log))
        assert {int(step): float(rate) for step, rate in printed.items()} == pytest.approx(
            wanted, rel=1e-6
        )


def test_first_update_is_made_with_a_rate_of_nothing(uninterrupted):
    name = "decoder.final_layernorm.weight"
    moved = {step: saved(uninterrupted, step) for step in (1, 2)}
    (main,) = [key for key in moved[1] if key.endswith(f"param.{name}")]
    assert torch.equal(moved[1][main], torch.ones_like(moved[1][main]))
    assert (moved[2][main] - 1).abs().max() == pytest.approx(rate_of_update(1), rel=1e-2)


@pytest.mark.parametrize("where", RESUMED)
def test_tensorboard_has_one_curve_after_a_resume(resumed, where):
    """The folder had the curves of all steps; those after the resume are the resumed run's own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = resumed / str(RESUMED[where])
    assert len(list((run / "tensorboard").glob("events*"))) == 2
    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}, purge_orphaned_data=True)
    tags = events.Reload().Tags()["scalars"]
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
    steps, validations = tiny.metrics(run), tiny.metrics(run, "validation")
    # Its duration is what two tries at a step never share.
    for tag, rows in (
        ("step seconds", steps),
        ("learning-rate", steps),
        ("raw tokens", steps),
        ("grad-norm", steps),
        ("bag loss", steps[:SWITCH]),
        ("lm loss", steps[SWITCH:]),
        ("lm loss validation", validations),
    ):
        assert curves[tag] == [(row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows]
    for tag, points in curves.items():
        own = [step for step, _ in points]
        assert own == sorted(set(own)), tag
        assert own[-1] <= STEPS, tag


def saved(run, step):
    return tiny.saved_tensors(run / "checkpoints" / f"iter_{step:07d}")


def test_reset_shows_in_the_main_weights_one_step_later_also_when_resumed(uninterrupted, resumed):
    from tst_megatron.training.resets import draw

    before, after = saved(uninterrupted, SWITCH), saved(uninterrupted, SWITCH + 1)
    again = saved(resumed / str(SWITCH), SWITCH + 1)
    for name, table in (
        ("embedding.word_embeddings.weight", "embeddings"),
        ("output_layer.weight", "output layer"),
    ):
        wanted = draw(
            table,
            (tiny.VOCABULARY, tiny.TINY["hidden-size"]),
            lambda tensor: torch.nn.init.normal_(tensor, 0.0, 0.02),
            seed=1234,
        )
        (main,) = [key for key in after if key.endswith(f"param.{name}")]
        assert (before[main] - wanted).abs().max() > 0.05
        assert 0 < (after[main] - wanted).abs().max() < 2 * LEARNING_RATE
        assert torch.equal(again[main], after[main])
    moments = [key for key in after if ".exp_avg." in key]
    # Both chained optimizers: the experts' own, and that of the rest.
    assert {".experts." in key for key in moments} == {True, False}
    for key in moments:
        assert torch.equal(again[key], after[key])
        # One step after a start at zero: m = 0.1 g and v = 0.05 g^2.
        squares = after[key.replace(".exp_avg.", ".exp_avg_sq.")]
        torch.testing.assert_close(squares, 5 * after[key] ** 2, rtol=1e-4, atol=1e-12)


def test_losses_jump_at_the_reset_and_fall_again(uninterrupted):
    losses = [row["lm loss"] for row in tiny.metrics(uninterrupted)[SWITCH:]]
    assert losses[0] == pytest.approx(6.238, rel=0.03)  # ln(512): the tables know nothing
    assert losses[-1] < losses[0] - 0.05


def test_log_and_console_say_what_was_reset(uninterrupted):
    log = (uninterrupted / "logs" / "rank-0.log").read_text()
    assert log.count(f"after step {SWITCH}: embeddings and output layer drawn anew") == 1
    assert log.count(f"after step {SWITCH}: optimizer started anew") == 1


def test_output_superposition_reads_what_the_baseline_reads(text, tmp_path):
    """Sample by sample, as the ranks have them in hand."""
    import recording

    tsts = {
        "baseline": {"bag-size": 1, "stream-unit-bags": 4},
        "output": {
            "bag-size": 4,
            "superposition-steps": 6,
            "inputs": "tokens",
            "slot-weights": "1/i",
        },
    }
    ranks = {}
    for arm, tst in tsts.items():
        recipe = tiny.write_recipe(tmp_path / f"{arm}.yaml", text, tst, train_iters=10)
        folders = {"log": tmp_path / f"{arm}.log", "tokens": tmp_path / f"{arm}-tokens"}
        arguments = ("train", str(recipe), "--run-folder", str(tmp_path / arm))
        ranks[arm] = tiny.fork_ranks(*arguments, num_ranks=1, **folders)
    for arm in tsts:
        tiny.wait(ranks[arm], tmp_path / f"{arm}.log")
    baseline = recording.batches(tmp_path / "baseline-tokens")
    output = recording.batches(tmp_path / "output-tokens")
    assert sorted(output) == sorted(baseline) == list(range(10))
    for step, samples in output.items():
        length = 32 + (4 if step < 6 else 1)
        assert [len(sample) for sample in samples] == [length] * 8
        assert [sample[:33] for sample in samples] == baseline[step]
    first = tiny.metrics(tmp_path / "output")
    assert [row["raw tokens"] for row in first] == [
        row["raw tokens"] for row in tiny.metrics(tmp_path / "baseline")
    ]
    assert ["bag loss" in row for row in first] == [True] * 6 + [False] * 4
