"""Which checkpoints are whole, where a run starts, and what the tracker file then says."""

import hashlib
import json
import shutil

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from tst_megatron.checkpoint.folder import (
    TRACKER,
    list_checkpoints,
    step_of,
    tracked_step,
    write_tracker,
)
from tst_megatron.checkpoint.start import find_start, repair_tracker
from tst_megatron.checkpoint.whole import examine, newest_whole, problems
from tst_megatron.recipe.recipe import RecipeError

SHARD = "__0_0.distcp"
COMMON = "common_state/shard_0_1"


def save(folder, step):
    """What a save leaves: tensors and a bytes item in one shard, written by torch itself."""
    state = {
        "weight": torch.arange(5000.0),
        "bias": torch.ones(7),
        # Megatron wraps each object in a list.
        "common_state/shard_0_1": [{"iteration": step, "words": "what is no tensor"}],
    }
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, checkpoint_id=folder, planner=planner, no_dist=True)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folders of checkpoints by step, to be copied: ``copy_of(saved, 4, to)``."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (*range(4, 21, 4), 10_000_000):
        save(folder / f"iter_{step:07d}", step)
    return folder


def copy_of(saved, step, to):
    shutil.copytree(saved / f"iter_{step:07d}", to / f"iter_{step:07d}")


@pytest.fixture
def folder(saved, tmp_path):
    """Three whole checkpoints, tracked."""
    for step in (4, 8, 12):
        copy_of(saved, step, tmp_path)
    (tmp_path / TRACKER).write_text("12")
    return tmp_path


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE = {
    "no metadata.json": (
        lambda checkpoint: (checkpoint / "metadata.json").unlink(),
        "metadata.json is missing",
    ),
    "metadata.json not JSON": (
        lambda checkpoint: (checkpoint / "metadata.json").write_text('{"sharded'),
        "metadata.json is not JSON",
    ),
    "another format": (
        lambda checkpoint: (checkpoint / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
        "metadata.json names the format 'zarr', and torch_dist is what a run saves",
    ),
    "metadata.json is a list": (
        lambda checkpoint: (checkpoint / "metadata.json").write_text("[]"),
        "metadata.json names the format None, and torch_dist is what a run saves",
    ),
    "no .metadata": (
        lambda checkpoint: (checkpoint / ".metadata").unlink(),
        ".metadata is missing",
    ),
    "empty .metadata": (
        lambda checkpoint: truncate(checkpoint / ".metadata", 0),
        ".metadata cannot be read (EOFError",
    ),
    "half of .metadata": (
        lambda checkpoint: truncate(checkpoint / ".metadata", 100),
        ".metadata cannot be read (",
    ),
    "no shard": (lambda checkpoint: (checkpoint / SHARD).unlink(), f"{SHARD} is missing"),
    "empty shard": (
        lambda checkpoint: truncate(checkpoint / SHARD, 0),
        f"{SHARD} has 0 bytes of ",
    ),
    "shard one byte short": (
        lambda checkpoint: truncate(checkpoint / SHARD, (checkpoint / SHARD).stat().st_size - 1),
        f"{SHARD} has ",
    ),
    "half a manifest": (
        lambda checkpoint: (checkpoint / "integrity.json").write_text('{"files": {'),
        "integrity.json is not JSON",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(folder, name):
    damage, sentence = DAMAGE[name]
    checkpoint = folder / "iter_0000012"
    assert problems(checkpoint) == problems(checkpoint, deep=True) == []
    damage(checkpoint)
    (problem,) = problems(checkpoint)
    assert problem.startswith(sentence)
    assert problems(checkpoint, deep=True)[0] == problem


def test_one_changed_byte_of_an_item_is_found_by_reading_it(folder):
    checkpoint = folder / "iter_0000012"
    data = bytearray((checkpoint / SHARD).read_bytes())
    position = data.find(torch.arange(5000.0).numpy().tobytes()[400:480])
    assert position > 0
    data[position] ^= 1
    (checkpoint / SHARD).write_bytes(data)
    assert problems(checkpoint) == []
    (problem,) = problems(checkpoint, deep=True)
    assert problem.startswith(f"{SHARD}: weight is damaged (")


def test_one_changed_byte_of_a_bytes_item_is_found_by_reading_it(folder):
    checkpoint = folder / "iter_0000012"
    items = dcp.FileSystemReader(checkpoint).read_metadata().storage_data
    (where,) = (item for index, item in items.items() if index.fqn == COMMON)
    data = bytearray((checkpoint / SHARD).read_bytes())
    position = data.find(b"what is no", where.offset)
    assert where.offset < position < where.offset + where.length
    data[position] ^= 1
    (checkpoint / SHARD).write_bytes(data)
    (problem,) = problems(checkpoint, deep=True)
    assert problem.startswith(f"{SHARD}: {COMMON} is damaged (")


def test_manifest_of_hashes_is_compared(folder):
    checkpoint = folder / "iter_0000012"
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()
    }
    manifest = {"algorithm": "sha256", "files": files}
    (checkpoint / "integrity.json").write_text(json.dumps(manifest))
    assert problems(checkpoint, deep=True) == []
    files["metadata.json"] = "0" * 64
    (checkpoint / "integrity.json").write_text(json.dumps(manifest))
    assert problems(checkpoint) == []
    assert problems(checkpoint, deep=True) == [
        "metadata.json is not what integrity.json says it was when it was saved"
    ]


def test_manifest_that_the_run_writes_last_must_be_there(folder):
    assert problems(folder / "iter_0000012", has_manifest=True) == ["integrity.json is missing"]


def test_reading_tells_how_far_it_is(folder):
    seen = []
    examine(
        folder / "iter_0000012",
        deep=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    done, total = seen[-1]
    assert done == total == (folder / "iter_0000012" / SHARD).stat().st_size
    assert [part for part, _ in seen] == sorted(part for part, _ in seen)


# --- the newest whole one -------------------------------------------------------------------------


def test_checkpoints_are_listed_newest_first_and_nothing_else_is(saved, folder):
    copy_of(saved, 10_000_000, folder)
    (folder / "iter_0000020").write_text("a file")
    (folder / "iter_12").mkdir()
    (folder / ".deleted-iter_0000002").mkdir()
    assert [step_of(path) for path in list_checkpoints(folder)] == [10_000_000, 12, 8, 4]
    assert list_checkpoints(folder / "none") == []


def test_damaged_ones_are_skipped_and_named(folder):
    (folder / "iter_0000012" / ".metadata").unlink()
    truncate(folder / "iter_0000008" / SHARD, 10)
    found, skipped = newest_whole(folder)
    assert found == folder / "iter_0000004"
    assert [(step_of(checkpoint), problem.split(" ")[0]) for checkpoint, problem in skipped] == [
        (12, ".metadata"),
        (8, SHARD),
    ]


def test_none_is_whole(folder):
    for checkpoint in list_checkpoints(folder):
        (checkpoint / "metadata.json").unlink()
    found, skipped = newest_whole(folder)
    assert found is None
    assert len(skipped) == 3


# --- the tracker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "twelve", "-3", "release", "1 2", "²", "\udcff"])
def test_tracker_without_a_step_is_none(folder, text):
    (folder / TRACKER).write_bytes(text.encode(errors="surrogateescape"))
    assert tracked_step(folder) is None


def test_tracker_holds_the_step_as_megatron_writes_it(folder):
    assert tracked_step(folder) == 12
    write_tracker(folder, 8)
    assert (folder / TRACKER).read_text() == "8"
    (folder / TRACKER).unlink()
    assert tracked_step(folder) is None


# --- where a run starts ---------------------------------------------------------------------------


def test_start_of_a_whole_run_folder_says_nothing(folder):
    start = repair_tracker(folder)
    assert (start.step, start.notes) == (12, ())


@pytest.mark.parametrize("text", [None, "", "1", "99", "8"])
def test_tracker_is_set_to_the_newest_whole_checkpoint(folder, text):
    (folder / TRACKER).unlink()
    if text is not None:
        (folder / TRACKER).write_text(text)
    start = repair_tracker(folder)
    assert start.step == 12
    (note,) = start.notes
    says = "was missing" if text is None else f"said {text!r}"
    assert note == f"{TRACKER} {says}: now 12, the newest whole checkpoint"
    assert (folder / TRACKER).read_text() == "12"


def test_finding_the_start_changes_nothing(folder):
    (folder / TRACKER).write_text("")
    assert find_start(folder).step == 12
    assert (folder / TRACKER).read_text() == ""


def test_each_damaged_checkpoint_has_a_line(folder):
    (folder / "iter_0000012" / "metadata.json").unlink()
    start = repair_tracker(folder)
    assert start.step == 8
    assert start.notes[0] == "iter_0000012: metadata.json is missing; skipped"
    assert (folder / TRACKER).read_text() == "8"


@pytest.mark.parametrize("num_unfinished", [1, 2])
def test_run_whose_first_saves_never_ended_starts_from_the_beginning(folder, num_unfinished):
    """Two, if saves are asynchronous."""
    (folder / TRACKER).unlink()
    for number, checkpoint in enumerate(list_checkpoints(folder)):
        (checkpoint / "metadata.json").unlink()
        if number >= num_unfinished:
            shutil.rmtree(checkpoint)
    start = repair_tracker(folder)
    assert start.step == 0
    assert start.notes[-1] == "no save was ever completed: starting from step 0"
    assert not (folder / TRACKER).exists()


def test_one_damaged_checkpoint_without_a_tracker_starts_over_with_a_word(folder):
    """A power cut may leave the last file of a save and not the first."""
    (folder / TRACKER).unlink()
    for step in (4, 8):
        shutil.rmtree(folder / f"iter_{step:07d}")
    truncate(folder / "iter_0000012" / SHARD, 10)
    start = repair_tracker(folder)
    assert start.step == 0
    assert start.notes[0].startswith(f"iter_0000012: {SHARD} has 10 bytes of ")
    assert start.notes[-1] == "no save was ever completed: starting from step 0"


@pytest.mark.parametrize(
    ("names", "lost"),
    [((4, 8, 12), "metadata.json"), ((4, 8, 12), SHARD), ((8, 12), SHARD)],
)
def test_more_damaged_checkpoints_than_first_saves_leave_are_refused(folder, names, lost):
    (folder / TRACKER).unlink()
    for checkpoint in list_checkpoints(folder):
        (checkpoint / lost).unlink()
        if step_of(checkpoint) not in names:
            shutil.rmtree(checkpoint)
    with pytest.raises(RecipeError) as refused:
        repair_tracker(folder)
    text = "\n".join(refused.value.problems)
    assert f"a checkpoint was saved here ({TRACKER} is missing), and none is whole" in text
    assert f"iter_0000012: {lost} is missing" in text
    assert len(list_checkpoints(folder)) == len(names)


def test_new_run_starts_without_a_word(tmp_path):
    assert repair_tracker(tmp_path).notes == ()
    assert repair_tracker(tmp_path / "none").step == 0


@pytest.mark.parametrize("are_there", [True, False])
def test_run_that_had_saved_and_has_no_whole_checkpoint_is_refused(folder, are_there):
    for checkpoint in list_checkpoints(folder):
        if are_there:
            (checkpoint / ".metadata").unlink()
        else:
            shutil.rmtree(checkpoint)
    with pytest.raises(RecipeError) as refused:
        repair_tracker(folder)
    text = "\n".join(refused.value.problems)
    assert f"{folder}: a checkpoint was saved here ({TRACKER} says '12'), and none is whole" in text
    assert "put one back" in text and "another --run-folder" in text
    assert ("iter_0000008: .metadata is missing" in text) == are_there
