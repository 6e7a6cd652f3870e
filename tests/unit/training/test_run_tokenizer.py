"""The tokenizer that a run keeps with its checkpoints: whole, its own, and no other's."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_run_folder import KNOWN

from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.hf.tokenizer.files import find_tokenizer
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.run import prepare
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.start import folder_problems
from tst_megatron.training.run.tokenizer import kept_tokenizer

FILES = {"tokenizer.json": "{}", "tokenizer_config.json": '{"eos_token": "x"}', "merges.txt": "a b"}


def checked_with(tokenizer: Path, *overrides: str) -> SimpleNamespace:
    """Stands for a ``CheckedRecipe`` whose text was prepared with a tokenizer."""
    recipe_file = tokenizer.parent / "recipe.yaml"
    recipe_file.write_text(
        "lr: 1.0e-6\ntrain-iters: 10\nseq-length: 8\nglobal-batch-size: 2\n"
        "data: {text: 1}\ntst: {bag-size: 4, superposition-fraction: 0.4}\n"
    )
    recipe = load_recipe(recipe_file, overrides)
    train = SimpleNamespace(text_sha256=tokenizer_sha256(tokenizer))
    facts = SimpleNamespace(sha256=tokenizer_sha256(tokenizer))
    manifest = SimpleNamespace(tokenizer_path=tokenizer, tokenizer=facts, train=train, test=None)
    return SimpleNamespace(
        recipe=recipe,
        schedule=recipe.schedule(),
        corpora=(SimpleNamespace(manifest=manifest),),
        flags=(),
        profile_values={},
        known=KNOWN,
        arguments=None,
        stream=None,
        environment={},
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


def kept_in_run(run: RunFolder, checked: SimpleNamespace) -> Path:
    return kept_tokenizer(run.checkpoints, checked.corpora[0].manifest)


def kept_in(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_folder_of_a_tokenizer_is_kept_with_the_checkpoints_without_a_model(run, tmp_path):
    tokenizer = hugging_face_at(tmp_path / "text")
    (tokenizer / "model.safetensors").write_text("weights")
    checked = checked_with(tokenizer)
    prepare.prepare(run, run_plan(checked))
    assert kept_in_run(run, checked) == run.checkpoints / "tokenizer"
    found = {path.name: path.read_text() for path in kept_in_run(run, checked).iterdir()}
    assert found == FILES
    assert kept_in(run) == ["tokenizer"]


def test_second_start_leaves_it_alone_and_brings_back_one_that_was_deleted(run, tmp_path):
    checked = checked_with(hugging_face_at(tmp_path / "text"))
    prepare.prepare(run, run_plan(checked))
    kept = kept_in_run(run, checked)
    before = kept.stat().st_ino
    prepare.prepare(run, run_plan(checked))
    assert kept.stat().st_ino == before
    shutil.rmtree(kept)
    prepare.prepare(run, run_plan(checked))
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
        if not killed_after(num_calls, lambda run=run: prepare.prepare(run, run_plan(of_old))):
            break
        if run.is_prepared():
            continue
        assert folder_problems(run, of_new, fresh=False) == [], num_calls
        prepare.prepare(run, run_plan(of_new))
        assert kept_in(run) == [kept_in_run(run, of_new).name]
        assert tokenizer_sha256(kept_in_run(run, of_new)) == wanted
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
    assert folder_problems(run, checked, fresh=False) == []
    prepare.prepare(run, run_plan(checked))
    assert kept_in(run) == ["tokenizer"]
    assert tokenizer_sha256(kept_in_run(run, checked)) == tokenizer_sha256(
        tmp_path / "text" / "tokenizer"
    )


def test_run_refuses_text_of_another_tokenizer(run, tmp_path):
    prepare.prepare(run, run_plan(checked_with(hugging_face_at(tmp_path / "text"))))
    other = checked_with(hugging_face_at(tmp_path / "other", added_tokens_json="[]"))
    (problem,) = folder_problems(run, other, fresh=False)
    assert problem.startswith("training text: this run was started with")


# --- another one in its place --------------------------------------------------------------------


def lie_beside(path: Path, what: str) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if what == "garbage":
        path.write_bytes(b"\x00\xff")
    elif what == "link to nothing":
        path.symlink_to("gone")
    elif what == "folder":
        path.mkdir()
    elif what == "another":
        path.mkdir()
        (path / "tokenizer.json").write_text("[]")


@pytest.mark.parametrize("make", [hugging_face_at, sentencepiece_at])
@pytest.mark.parametrize("what", ["garbage", "link to nothing", "folder", "another"])
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer.model"])
def test_another_tokenizer_beside_the_checkpoints_is_moved_aside(run, tmp_path, make, what, name):
    """Also one of the other kind: it would be exported before the run's own."""
    checked = checked_with(make(tmp_path / "text"))
    prepare.prepare(run, run_plan(checked))
    lie_beside(run.checkpoints / name, what)
    assert [path for path, _ in prepare.damaged(run, run_plan(checked))] == [run.checkpoints / name]
    (note,) = prepare.prepare(run, run_plan(checked))
    assert "is not the tokenizer of the training text: moved to" in note
    wanted = checked.corpora[0].manifest.tokenizer
    assert tokenizer_sha256(kept_in_run(run, checked)) == wanted.sha256
    assert kept_in(run) == sorted([kept_in_run(run, checked).name, f"{name}.damaged"])
    assert prepare.prepare(run, run_plan(checked)) == []


@pytest.mark.parametrize("file", ["merges.txt", "tokenizer.json"])
def test_one_changed_file_of_a_folder_is_another_tokenizer(run, tmp_path, file):
    checked = checked_with(hugging_face_at(tmp_path / "text"))
    prepare.prepare(run, run_plan(checked))
    (kept_in_run(run, checked) / file).write_text("changed")
    assert len(prepare.damaged(run, run_plan(checked))) == 1


def arguments(tokenizer: Path | None = None, **known) -> SimpleNamespace:
    """What a checkpoint says of its tokenizer."""
    return SimpleNamespace(tokenizer_model=tokenizer, tokenizer_type="SentencePiece", **known)


def knowing(sha256: str) -> dict:
    return {"tst": {"stream": {"tokenizer": sha256}}}


def test_export_takes_the_tokenizer_of_the_checkpoint_wherever_it_is(tmp_path, tokenizer_model):
    """The one beside it was replaced, and the one of the other kind, and its origin is there."""
    beside = sentencepiece_at(tmp_path / "checkpoints").parent
    hugging_face_at(beside)
    args = arguments(tokenizer_model, **knowing(tokenizer_sha256(tokenizer_model)))
    found = find_tokenizer(args, beside)
    assert (found.source, found.note) == (tokenizer_model, None)
    args.tokenizer_model = None
    with pytest.raises(ValueError, match="are not what the model was trained with.*Bring back"):
        find_tokenizer(args, beside)


def test_tokenizer_that_is_named_is_taken_with_a_warning_where_it_differs(
    tmp_path, tokenizer_model
):
    known = tokenizer_sha256(tokenizer_model)
    same, other = arguments(**knowing(known)), arguments(**knowing("0" * 64))
    assert find_tokenizer(same, tmp_path, tokenizer_model).note is None
    note = find_tokenizer(other, tmp_path, tokenizer_model).note
    assert note == f"warning: {tokenizer_model} is not what the model was trained with"


def test_tokenizer_of_a_checkpoint_that_does_not_know_it_is_said_to_be_not_compared(
    tmp_path, tokenizer_model
):
    shutil.copy(tokenizer_model, tmp_path / "tokenizer.model")
    found = find_tokenizer(arguments(), tmp_path)
    assert found.source == tmp_path / "tokenizer.model"
    assert found.note is not None and "could not be compared" in found.note


def test_run_around_an_old_checkpoint_says_which_tokenizer_its_text_had(
    tmp_path, tokenizer_model, monkeypatch
):
    beside = tmp_path / "run" / "checkpoints"
    sentencepiece_at(beside)
    resolved = beside.parent / "resolved.yaml"
    resolved.write_text(yaml.safe_dump({"data": {"/text": 1.0}}))
    manifests = {Path("/text"): tokenizer_sha256(tokenizer_model)}

    def load(folder):
        return SimpleNamespace(tokenizer=SimpleNamespace(sha256=manifests[folder]))

    monkeypatch.setattr("tst_megatron.hf.tokenizer.files.load_manifest", load)
    with pytest.raises(ValueError, match="is not what the model was trained with"):
        find_tokenizer(arguments(), beside)
    shutil.copy(tokenizer_model, beside / "tokenizer.model")
    assert find_tokenizer(arguments(), beside).note is None
    for damaged in ("data: 5", "data: {gone: 1}", "[", "data: {}"):
        resolved.write_text(damaged)
        assert find_tokenizer(arguments(), beside).note is not None
