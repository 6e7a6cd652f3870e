"""The tokenizer that a run keeps with its checkpoints: whole, its own, and no other's."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tst_megatron.data.tokenizer import tokenizer_sha256
from tst_megatron.recipe import load_recipe
from tst_megatron.training.run_folder import RunFolder

FILES = {"tokenizer.json": "{}", "tokenizer_config.json": '{"eos_token": "x"}', "merges.txt": "a b"}


def checked_with(tokenizer: Path, *overrides: str) -> SimpleNamespace:
    """Stands for a ``CheckedRecipe`` whose text was prepared with a tokenizer."""
    recipe_file = tokenizer.parent / "recipe.yaml"
    recipe_file.write_text(
        "lr: 1.0e-6\ntrain-iters: 10\nseq-length: 8\nglobal-batch-size: 2\n"
        "data: {text: 1}\ntst: {bag-size: 4, superposition-fraction: 0.4}\n"
    )
    recipe = load_recipe(recipe_file, overrides)
    train = SimpleNamespace(bin_sha256=tokenizer_sha256(tokenizer))
    facts = SimpleNamespace(sha256=tokenizer_sha256(tokenizer))
    manifest = SimpleNamespace(tokenizer_path=tokenizer, tokenizer=facts, train=train, test=None)
    return SimpleNamespace(
        recipe=recipe,
        schedule=recipe.schedule(),
        corpora=(SimpleNamespace(manifest=manifest),),
        flags=(),
        profile_values={},
    )


def hugging_face_at(folder: Path, **changes: str) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    for name, text in {**FILES, **{k.replace("_j", ".j"): v for k, v in changes.items()}}.items():
        (folder / "tokenizer" / name).write_text(text)
    return folder / "tokenizer"


def sentencepiece_at(folder: Path, pieces: bytes = b"pieces") -> Path:
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(pieces)
    return folder / "tokenizer.model"


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "one")


def kept_in(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_folder_of_a_tokenizer_is_kept_with_the_checkpoints_without_a_model(run, tmp_path):
    tokenizer = hugging_face_at(tmp_path / "text")
    (tokenizer / "model.safetensors").write_text("weights")
    checked = checked_with(tokenizer)
    run.prepare(checked)
    assert run.tokenizer_of(checked) == run.checkpoints / "tokenizer"
    found = {path.name: path.read_text() for path in run.tokenizer_of(checked).iterdir()}
    assert found == FILES
    assert kept_in(run) == ["tokenizer"]


def test_second_start_leaves_it_alone_and_brings_back_one_that_was_deleted(run, tmp_path):
    checked = checked_with(hugging_face_at(tmp_path / "text"))
    run.prepare(checked)
    kept = run.tokenizer_of(checked)
    before = kept.stat().st_ino
    run.prepare(checked)
    assert kept.stat().st_ino == before
    shutil.rmtree(kept)
    run.prepare(checked)
    assert tokenizer_sha256(kept) == tokenizer_sha256(tmp_path / "text" / "tokenizer")


MAKERS = {
    "another folder": lambda folder: hugging_face_at(folder, added_tokens_json="[]"),
    "a model": sentencepiece_at,
}


@pytest.mark.parametrize("old", MAKERS)
@pytest.mark.parametrize("new", [hugging_face_at, sentencepiece_at])
def test_start_killed_at_any_moment_leaves_no_tokenizer_of_another_recipe(run, tmp_path, old, new):
    """Before each system call that writes: a new folder, a flush of what is beside, a rename."""
    of_old = checked_with(MAKERS[old](tmp_path / "old"), "seed=7")
    of_new = checked_with(new(tmp_path / "new"))
    wanted = tokenizer_sha256(of_new.corpora[0].manifest.tokenizer_path)
    for num_calls in range(100):
        run = RunFolder(tmp_path / "runs" / str(num_calls))
        if not killed_after(num_calls, lambda run=run: run.prepare(of_old)):
            break
        if run.is_prepared():
            continue
        assert run.problems(of_new, fresh=False) == [], num_calls
        run.prepare(of_new)
        assert kept_in(run) == [run.tokenizer_of(of_new).name]
        assert tokenizer_sha256(run.tokenizer_of(of_new)) == wanted
    assert num_calls > 10


def killed_after(num_calls: int, start) -> bool:
    """Whether a start was killed, before its next call that writes after so many of them."""
    left = [num_calls]

    def counted(call):
        def calls(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*args, **kwargs)

        return calls

    with pytest.MonkeyPatch.context() as patch:
        for place, name in ((Path, "mkdir"), (Path, "replace"), (os, "fsync")):
            patch.setattr(place, name, counted(getattr(place, name)))
        try:
            start()
        except KeyboardInterrupt:
            return True
    return False


def test_what_a_kill_leaves_beside_bars_no_start(run, tmp_path):
    """A process that is killed outright removes nothing: half a copy, under a hidden name."""
    checked = checked_with(hugging_face_at(tmp_path / "text"))
    half = run.checkpoints / ".tokenizer.node-1.4711"
    half.mkdir(parents=True)
    (half / "tokenizer.json").write_text("{")
    assert run.problems(checked, fresh=False) == []
    run.prepare(checked)
    assert kept_in(run) == ["tokenizer"]
    assert tokenizer_sha256(run.tokenizer_of(checked)) == tokenizer_sha256(
        tmp_path / "text" / "tokenizer"
    )


def test_run_refuses_text_of_another_tokenizer(run, tmp_path):
    run.prepare(checked_with(hugging_face_at(tmp_path / "text")))
    other = checked_with(hugging_face_at(tmp_path / "other", added_tokens_json="[]"))
    (problem,) = run.problems(other, fresh=False)
    assert problem.startswith("training text: this run was started with")
