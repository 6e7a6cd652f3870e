"""The names of checkpoints, the tracker file, and the checkpoint that a path stands for."""

from pathlib import Path

import pytest

from tst_megatron.checkpoint.folder import (
    RELEASE,
    TRACKER,
    checkpoint_of,
    find_checkpoint,
    list_checkpoints,
    read_tracker,
    step_in_name,
)
from tst_megatron.checkpoint.outputs import check_output


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("iter_0000012", 12),
        ("iter_10000000", 10_000_000),
        ("iter_12", None),
        ("iter_\u0661\u0661\u0661\u0661\u0661\u0661\u0661", None),
        ("release", None),
        (".deleted-iter_0000012", None),
    ],
)
def test_step_in_name(tmp_path: Path, name: str, step: int | None) -> None:
    (tmp_path / name).mkdir()
    assert step_in_name(tmp_path / name) == step
    assert [path.name for path in list_checkpoints(tmp_path)] == ([name] if step else [])


def test_name_of_a_link_counts_before_the_name_that_it_leads_to(tmp_path: Path) -> None:
    folder = _checkpoints(tmp_path, 4, tracker="12")
    (tmp_path / "iter_0000012").symlink_to(tmp_path / "iter_0000004")
    (tmp_path / "newest").symlink_to(tmp_path / "iter_0000004")

    assert step_in_name(tmp_path / "iter_0000012") == 12
    assert step_in_name(tmp_path / "newest") == 4
    assert find_checkpoint(folder) == folder / "iter_0000012"
    assert find_checkpoint(folder, 4) == folder / "iter_0000004"


@pytest.mark.parametrize(
    ("data", "step", "text", "damage"),
    [
        (b"12\n", 12, "12", None),
        (b"", None, "", None),
        (b"release", None, RELEASE, None),
        (b"\xff", None, "\ufffd", "is not UTF-8 at byte 0"),
        (b"1" * 200, None, "1" * 100, None),
        (None, None, None, None),
    ],
)
def test_tracker_of_any_content_is_no_error(
    tmp_path: Path, data: bytes | None, step: int | None, text: str | None, damage: str | None
) -> None:
    if data is not None:
        (tmp_path / TRACKER).write_bytes(data)
    found = read_tracker(tmp_path)
    assert (found.step, found.text, found.damage) == (step, text, damage)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", f"{TRACKER}: is not UTF-8 at byte 0. Name an iteration; those there: 5, 10"),
        (b"", f"{TRACKER}: must hold the newest iteration as a number, but holds ''. Name an"),
        (None, f"{TRACKER}: must hold the newest iteration as a number, but does not exist. Name"),
    ],
)
def test_find_checkpoint_does_not_guess_without_a_tracker(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    folder = _checkpoints(tmp_path, 5, 10)
    if data is not None:
        (folder / TRACKER).write_bytes(data)
    with pytest.raises(ValueError) as refused:
        find_checkpoint(folder)
    assert message in str(refused.value)


def test_outputs_are_refused_by_the_same_names(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 12).mkdir()
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / TRACKER).write_text(RELEASE)
    for place in (checkpoint_of(tmp_path, 12), tmp_path / "imported"):
        with pytest.raises(ValueError, match="is in "):
            check_output(place / "hf")


def _checkpoints(folder: Path, *iterations: int, tracker: str | None = None) -> Path:
    for iteration in iterations:
        (folder / f"iter_{iteration:07d}").mkdir()
    if tracker is not None:
        (folder / TRACKER).write_text(tracker)
    return folder


def test_find_checkpoint_of_an_import_is_its_release(tmp_path: Path) -> None:
    folder = _checkpoints(tmp_path, tracker="release")
    (folder / "release").mkdir()
    (folder / "release" / ".metadata").touch()

    assert find_checkpoint(folder) == find_checkpoint(folder, 0) == folder / "release"
    assert find_checkpoint(folder / "release") == folder / "release"


def test_find_checkpoint_follows_the_tracker(tmp_path: Path) -> None:
    folder = _checkpoints(tmp_path, 5, 10, tracker="5\n")

    assert find_checkpoint(folder) == folder / "iter_0000005"
    assert find_checkpoint(folder, 10) == folder / "iter_0000010"
    assert find_checkpoint(folder / "iter_0000010") == folder / "iter_0000010"


def test_find_checkpoint_takes_a_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    folder = _checkpoints(tmp_path / "checkpoints", 5, 10, tracker="5\n")
    assert find_checkpoint(tmp_path) == folder / "iter_0000005"
    assert find_checkpoint(tmp_path, 10) == folder / "iter_0000010"


@pytest.mark.parametrize(
    ("path", "iteration", "message"),
    [
        (".", 7, r"no checkpoint of iteration 7. Iterations there: 5, 10\."),
        (".", None, "must hold the newest iteration as a number, but holds 'release'"),
        ("iter_0000005", 10, "is the checkpoint of iteration 5, but iteration 10 was asked for"),
        ("nowhere", None, "no such folder"),
    ],
)
def test_find_checkpoint_without_it_says_what_there_is(
    tmp_path: Path, path: str, iteration: int | None, message: str
) -> None:
    _checkpoints(tmp_path, 5, 10, tracker="release")

    with pytest.raises(ValueError, match=message):
        find_checkpoint(tmp_path / path, iteration)


def test_find_checkpoint_in_empty_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "checkpoints"):
        path.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"no checkpoint there .*Give a run folder, its"):
            find_checkpoint(tmp_path)
