"""A real run over two corpora, read more than once, with loader workers and a test split."""

import json
import shutil

import pytest
import tiny
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 12


@pytest.fixture(scope="module")
def corpora(text, tmp_path_factory):
    """Two prepared folders with one tokenizer, too small for the run to read once."""
    from tst_megatron.data.prepare.prepare import prepare

    folder = tmp_path_factory.mktemp("corpora")
    lines = (text.parent / "corpus.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:40]), ("b", lines[40:100])):
        source = folder / f"{name}.jsonl"
        # Short documents, so that each split has some.
        texts = (json.loads(line)["text"][:250] for line in part)
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        fractions = {"held_out_fraction": 0.3, "test_fraction": 0.3}
        prepare([source], text / "tokenizer.model", folder / name, workers=1, **fractions)
    return folder


@pytest.fixture(scope="module")
def recipe(corpora):
    path = corpora / "tst.yaml"
    tst = {"bag-size": 4, "superposition-steps": 6, "max-epochs": 9}
    tiny.write_recipe(path, corpora, tst, train_iters=STEPS, eval_interval=5, num_workers=2)
    recipe = yaml.safe_load(path.read_text())
    recipe |= {"data": {str(corpora / "a"): 1.0, str(corpora / "b"): 2.0}, "save-interval": 4}
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(recipe, run):
    log = run.with_suffix(".log")
    arguments = ("train", str(recipe), "--run-folder", str(run))
    tiny.wait(tiny.fork_ranks(*arguments, num_ranks=1, log=log), log)


@pytest.fixture(scope="module")
def run(recipe, corpora):
    train(recipe, corpora / "run")
    return corpora / "run"


def test_test_text_is_evaluated_once_after_the_last_step_under_its_own_name(run):
    (test,) = tiny.metrics(run, "test")
    assert test["step"] == STEPS and 0 < test["lm loss test"] < 7
    validations = tiny.metrics(run, "validation")
    assert [row["step"] for row in validations] == [5, 10, STEPS]
    assert test["lm loss test"] != validations[-1]["lm loss validation"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curve = events.Scalars("lm loss validation")
    assert [event.step for event in curve] == [5, 10, STEPS]
    assert [event.step for event in events.Scalars("lm loss test")] == [STEPS]


def test_resume_over_epochs_corpora_and_workers_is_bit_identical(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for step in (8, STEPS):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"iter_{step:07d}")
    train(recipe, tmp_path / "run")
    for event in ("step", "validation", "test"):
        before, after = (
            [
                {key: value for key, value in row.items() if "loss" in key or key == "step"}
                for row in tiny.metrics(folder, event)
            ]
            for folder in (run, tmp_path / "run")
        )
        assert before == after


def test_corpora_were_read_more_than_once(run, recipe):
    from tst_megatron.recipe.recipe import load_recipe
    from tst_megatron.training.check.check_recipe import check_recipe

    stream = check_recipe(load_recipe(recipe), world_size=1).stream
    assert min(stream.epochs_of(0), stream.epochs_of(1)) >= 2
