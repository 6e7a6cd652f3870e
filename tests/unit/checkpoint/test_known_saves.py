"""Absence is not newness: which records show that a run once completed a save."""

import json

import pytest

from tst_megatron.checkpoint.known_saves import known_saves, note_save, noted_save


def rows(path, *steps):
    lines = [json.dumps({"event": "step", "step": step}) for step in steps]
    path.write_text("".join(f"{line}\n" for line in lines))


def layouts(run, *steps):
    entries = [{"after step": step, "layout": {}} for step in steps]
    (run / "versions.json").write_text(json.dumps({"layouts": entries}))


def event(run, step):
    (run / "slurm").mkdir()
    (run / "slurm" / "events.tsv").write_text(
        f"2026-11-25T21:20:06Z\t811\tstart\t0\t\n2026-11-25T21:21:06Z\t811\tend\t{step}\tfinished\n"
    )


def state(run, step):
    (run / "state.json").write_text(json.dumps({"status": "finished", "step": step}))


EVIDENCE = {
    "saves.json": lambda run: note_save(run, 20),
    "state.json": lambda run: state(run, 20),
    "versions.json": lambda run: layouts(run, 0, 20, 8),
    "slurm/events.tsv": lambda run: event(run, 20),
    # A start that went on from step 20, and after it one that went on from step 12.
    "metrics.dropped.jsonl": lambda run: rows(run / "metrics.dropped.jsonl", 21, 22, 13, 14),
}


@pytest.mark.parametrize("is_noted", [True, False])
@pytest.mark.parametrize("name", EVIDENCE)
def test_each_record_is_enough_by_itself(tmp_path, name, is_noted):
    if is_noted:
        note_save(tmp_path, 0)
    EVIDENCE[name](tmp_path)
    # Rows may have been lost, so they say nothing against a record that no save was complete.
    is_less_sure = is_noted and name == "metrics.dropped.jsonl"
    assert known_saves(tmp_path) == ([] if is_less_sure else [f"{name} knows step 20"])


def test_run_that_was_killed_before_its_first_save_has_none(tmp_path):
    note_save(tmp_path, 0)
    state(tmp_path, 0)
    layouts(tmp_path, 0)
    event(tmp_path, 0)
    rows(tmp_path / "metrics.jsonl", *range(1, 300))
    # Of starts that were killed likewise.
    rows(tmp_path / "metrics.dropped.jsonl", 1, 2, 3, 1, 2, 1)
    assert known_saves(tmp_path) == [] and noted_save(tmp_path) == 0


@pytest.mark.parametrize(
    ("recipe", "newest", "is_known"),
    [
        ("save-interval: 10", 10, False),
        ("save-interval: 10", 11, True),
        ("save-interval: 10\nasync-save: true", 30, False),
        ("save-interval: 10\nasync-save: true", 31, True),
        ("train-iters: 10", 500, False),
        ("save-interval: many", 500, False),
        ("", 500, False),
        ("[1, 2", 500, False),
    ],
)
def test_older_run_folder_is_known_by_steps_beyond_a_save(tmp_path, recipe, newest, is_known):
    (tmp_path / "resolved.yaml").write_text(recipe)
    rows(tmp_path / "metrics.jsonl", *range(1, newest + 1))
    assert bool(known_saves(tmp_path)) == is_known
    # From now on the run says so itself: the interval may change, and the steps stay.
    note_save(tmp_path, 0)
    assert known_saves(tmp_path) == []


DAMAGE = [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"step": "x"}', b"7"]


@pytest.mark.parametrize("content", [*DAMAGE, None])
def test_damaged_records_say_nothing_and_raise_nothing(tmp_path, content):
    (tmp_path / "slurm").mkdir()
    for name in (*EVIDENCE, "metrics.jsonl", "resolved.yaml"):
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(content)
    assert known_saves(tmp_path) == [] and noted_save(tmp_path) is None
