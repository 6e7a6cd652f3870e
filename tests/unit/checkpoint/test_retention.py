"""Which checkpoints a run keeps, and that none is deleted before a newer one is proven whole."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_checkpoints import SHARD, copy_of, saved, truncate  # noqa: F401

from tst_megatron.checkpoint.folder import list_checkpoints, step_of
from tst_megatron.checkpoint.retention import (
    Keeper,
    KeepingRule,
    always_kept,
    remove_leftovers,
    steps_to_delete,
)
from tst_megatron.checkpoint.whole import problems

STEPS = [4, 8, 12, 16, 20]


@pytest.mark.parametrize(
    ("rule", "deleted"),
    [
        (KeepingRule(), []),
        (KeepingRule(keep_last=1), [4, 8, 12, 16]),
        (KeepingRule(keep_last=2), [4, 8, 12]),
        (KeepingRule(keep_last=9), []),
        (KeepingRule(keep_last=1, keep_every=8), [4, 12]),
        (KeepingRule(keep_last=1, always=frozenset({4, 7})), [8, 12, 16]),
        (KeepingRule(keep_last=2, keep_every=12, always=frozenset({4})), [8]),
        (KeepingRule(keep_every=8), [4, 12]),
    ],
)
def test_rule_keeps_the_last_every_mth_and_the_named(rule, deleted):
    assert steps_to_delete(STEPS, STEPS, rule) == deleted


def test_nothing_is_deleted_while_none_is_whole():
    assert steps_to_delete(STEPS, [], KeepingRule(keep_last=1)) == []


def test_what_is_newer_than_the_newest_whole_one_stays():
    assert steps_to_delete(STEPS, [12], KeepingRule(keep_last=1)) == [4, 8]


def test_damaged_one_does_not_count_among_the_last():
    assert steps_to_delete(STEPS, [20, 12], KeepingRule(keep_last=2)) == [4, 8, 16]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, {6, 15}),
        ({"lr_decay_style": "cosine"}, {6}),
        ({"lr_wsd_decay_iters": None}, {6}),
        ({"lr_decay_iters": 12}, {6, 7}),
        ({"lr_wsd_decay_iters": 20}, {6}),
    ],
)
def test_last_superposition_step_and_start_of_the_decay_are_always_kept(changes, steps):
    values = {"train_iters": 20, "lr_decay_iters": None, "lr_decay_style": "WSD"}
    args = SimpleNamespace(**{**values, "lr_wsd_decay_iters": 5, **changes})
    assert always_kept(args, switch_step=6) == steps


def test_run_without_superposition_has_no_switch_to_keep():
    args = SimpleNamespace(train_iters=20, lr_decay_iters=None, lr_decay_style="linear")
    assert always_kept(args, switch_step=0) == set()


# --- on disk --------------------------------------------------------------------------------------


@pytest.fixture
def folder(saved, tmp_path):  # noqa: F811
    for step in (4, 8, 12):
        copy_of(saved, step, tmp_path)
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(folder)]


def wait_for_deletes():
    for thread in threading.enumerate():
        if thread.name.startswith(".deleted-"):
            thread.join()


def after_a_save_killed_in(folder, place, name):
    """Let a process end in one call of the deletes after a save."""
    process = os.fork()
    if not process:
        setattr(place, name, lambda *_, **__: os._exit(9))
        Keeper(folder, KeepingRule(keep_last=1), say=print).after_save(12)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) in (0, 9)


@pytest.mark.parametrize(
    ("place", "name", "left"),
    [(Path, "rename", [12, 8, 4]), (shutil, "rmtree", [12, 8]), (os, "rmdir", [12, 8])],
)
def test_delete_that_is_killed_leaves_no_half_folder_under_its_name(folder, place, name, left):
    after_a_save_killed_in(folder, place, name)
    # The files go in a thread, and the next one may have lost its name meanwhile.
    assert steps(folder) in (left, [12])
    assert all(problems(path, deep=True) == [] for path in list_checkpoints(folder))
    remove_leftovers(folder)
    assert list(folder.glob(".*")) == []
    Keeper(folder, KeepingRule(keep_last=1), say=lambda _: None).after_save(12)
    wait_for_deletes()
    assert [path.name for path in folder.iterdir()] == ["iter_0000012"]


def test_delete_goes_over_what_an_earlier_one_left(folder):
    (folder / ".deleted-iter_0000004" / "part").mkdir(parents=True)
    Keeper(folder, KeepingRule(keep_last=2), say=lambda _: None).after_save(12)
    wait_for_deletes()
    assert sorted(path.name for path in folder.iterdir()) == ["iter_0000008", "iter_0000012"]


def test_keeper_deletes_by_the_rule_after_a_save(folder):
    said = []
    keeper = Keeper(folder, KeepingRule(keep_last=1), say=said.append)
    keeper.after_save(12)
    wait_for_deletes()
    assert steps(folder) == [12]
    assert said == ["checkpoints deleted by rule: iter_0000004, iter_0000008"]


def test_keeper_deletes_nothing_when_the_new_one_is_not_whole(folder):
    truncate(folder / "iter_0000012" / SHARD, 10)
    said = []
    keeper = Keeper(folder, KeepingRule(keep_last=1), say=said.append)
    keeper.after_save(12)
    wait_for_deletes()
    assert steps(folder) == [12, 8, 4]
    (line,) = said
    assert line.startswith(f"iter_0000012: {SHARD} has 10 bytes of ")
    assert line.endswith("nothing is deleted")


def test_keeper_counts_whole_ones_alone_among_the_last(folder, saved):  # noqa: F811
    truncate(folder / "iter_0000012" / SHARD, 10)
    copy_of(saved, 16, folder)
    keeper = Keeper(folder, KeepingRule(keep_last=2), say=lambda _: None)
    keeper.after_save(16)
    wait_for_deletes()
    assert steps(folder) == [16, 8]
    copy_of(saved, 20, folder)
    truncate(folder / "iter_0000016" / SHARD, 10)
    # What was proven whole in this process is not read again.
    keeper.after_save(20)
    wait_for_deletes()
    assert steps(folder) == [20, 16]


def test_link_is_left_alone(folder, saved):  # noqa: F811
    (folder / "iter_0000002").symlink_to(saved / "iter_0000004")
    keeper = Keeper(folder, KeepingRule(keep_last=1), say=lambda _: None)
    keeper.after_save(12)
    wait_for_deletes()
    assert steps(folder) == [12, 2]
    assert saved.exists()


def test_folder_that_cannot_be_deleted_does_not_end_the_run(folder, monkeypatch):
    def refused(self, target):
        raise OSError("device busy")

    said = []
    monkeypatch.setattr(Path, "rename", refused)
    Keeper(folder, KeepingRule(keep_last=1), say=said.append).after_save(12)
    assert any("device busy" in line for line in said)
    assert steps(folder) == [12, 8, 4]


def test_part_of_a_checkpoint_is_cleared_before_a_save_and_a_whole_one_is_not(folder):
    truncate(folder / "iter_0000012" / SHARD, 10)
    said = []
    keeper = Keeper(folder, KeepingRule(), say=said.append)
    for step in (8, 12, 16):
        keeper.clear(step)
    wait_for_deletes()
    assert steps(folder) == [8, 4]
    assert len(said) == 1 and said[0].startswith(f"iter_0000012: {SHARD} has 10 bytes")


def test_what_the_start_passed_over_takes_no_place_from_what_it_saves(folder, saved):  # noqa: F811
    """A run that went back keeps the checkpoints that it makes, beside newer ones of no use."""
    copy_of(saved, 16, folder)
    copy_of(saved, 20, folder)
    keeper = Keeper(folder, KeepingRule(keep_last=1), say=lambda _: None)
    keeper.distrust(20)
    keeper.after_save(12)
    wait_for_deletes()
    assert steps(folder) == [20, 16, 12]
    assert keeper._newest_whole([]) == []
