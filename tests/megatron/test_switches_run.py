"""Whole runs with switches: three bag sizes, resets at the switch, a resume exactly there."""

import pytest
import tiny
import torch
from interrupted import interrupted_at

SWITCH, STEPS, LEARNING_RATE = 6, 12, 1e-3
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
        lr_wsd_decay_iters=2,
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
