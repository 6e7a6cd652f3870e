"""Every file of a run folder, damaged in every way: what only tells stops nothing and is kept."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from made_plans import made_plan
from status_folders import NOW, Folder
from test_run_folder import make_checked, save_checkpoint

from tst_megatron.checkpoint.folder import TRACKER
from tst_megatron.cli.app import main
from tst_megatron.system.records import Damaged
from tst_megatron.training.report.facts import read_facts, write_facts
from tst_megatron.training.report.metrics_file import drop_lines_after, events_at, read_metrics
from tst_megatron.training.report.plan_file import write_plan
from tst_megatron.training.report.versions import write_versions
from tst_megatron.training.run import endings, prepare, saves
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.identity import identity
from tst_megatron.training.run.plan import run_plan
from tst_megatron.training.run.records import clear_log, notes_of
from tst_megatron.training.run.start import folder_problems

STEP = 6


def write(content):
    def damage(path):
        path.write_bytes(content)

    return damage


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turned_into_a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("kept")


def turned_into_a_file(path):
    path.write_text("a file where a folder is kept")


def linked_to_nothing(path):
    path.unlink(missing_ok=True)
    path.symlink_to("gone")


DAMAGE = {
    "empty": write(b""),
    "cut": cut,
    "garbage": write(bytes(range(256)) * 9),
    "zeros": write(bytes(4096)),
    "no UTF-8": write(b'{"status": "\xff"}\n'),
    "null": write(b"null"),
    "list": write(b"[]"),
    "numbers": write(b"[1, 2]"),
    "empty block": write(b"{}"),
    "layouts that are none": write(b'{"layouts":[{}, 5, {"after step": "x", "layout": {}}]}'),
    "layouts of another kind": write(b'{"layouts": 5}'),
    "nested": write(b"[" * 9_000),
    "nested block": write(b'{"status":' * 9_000),
    "digits": write(b'{"step": ' + b"9" * 9999 + b"}"),
    "endless numbers": write(
        b'{"step": 1e999, "status": NaN, "event": "step", "phases": [[1, 2]]}'
    ),
    "other kinds": write(b'{"status": [], "reason": 1, "step": "x", "exit_status": null}'),
    "tag": write(b"!!python/object/apply:os.system ['touch ran-code']\n"),
    "date": write(b"a: 2020-99-99\n"),
    "anchor in itself": write(b"a: &a [*a]\ntst: hello\n"),
    "folder": turned_into_a_folder,
    "link to nothing": linked_to_nothing,
}

RECORDS = (
    "versions.json",
    "facts.json",
    "plan.json",
    "metrics.jsonl",
    "metrics.dropped.jsonl",
    "state.json",
    "recipe.yaml",
    "logs/rank-0.log",
    "slurm/events.tsv",
    "checkpoints/latest_checkpointed_iteration.txt",
    "checkpoints/tokenizer.model",
)
KEPT = "state.json.damaged"
FACTS = {"stream": {"seed": 1}, "held-out": {}, "parameters": {"total": 5}}


@pytest.fixture
def checked(tmp_path):
    return make_checked(tmp_path / "source")


@pytest.fixture
def run(tmp_path, checked, monkeypatch):
    """Stopped after step 6 of 10, with everything that a run has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saves, "problems", lambda *_, **__: [])
    monkeypatch.setattr("tst_megatron.checkpoint.whole.problems", lambda *_, **__: [])
    run = RunFolder(tmp_path / "run")
    prepare.prepare(run, run_plan(checked))
    Folder.steps(_folder_of(run), 1, 8, validation_at=(STEP,))
    run.metrics.with_name("metrics.dropped.jsonl").write_text('{"event": "step", "step": 9}\n')
    run.log(0).write_text("a log\n")
    _folder_of(run).event(60, 811, "start")
    save_checkpoint(run, STEP)
    run.write_state("stopped", reason="asked to stop", step=STEP, device="cpu", exit_status=75)
    write_versions(run.versions, device="cpu", world_size=1, layout={"ranks": 1}, step=0)
    write_facts(run.path / "facts.json", FACTS)
    write_plan(run.plan, made_plan())
    return run


def _folder_of(run):
    folder = Folder.__new__(Folder)
    folder.path, folder.run = run.path, run
    return folder


def start(run, checked):
    """All that a start does with the folder, without Megatron between."""
    assert folder_problems(run, checked, fresh=False) == []
    notes = notes_of(prepare.damaged(run, run_plan(checked)))
    moved = prepare.prepare(run, run_plan(checked))
    assert len(moved) == len(notes)
    found = saves.repair(run, run_plan(checked))
    assert found.step == STEP and not saves.is_finished(run, run_plan(checked))
    moved += clear_log(run.log(0))
    with run.log(0).open("a") as log:
        log.write("another start\n")
    before = run.state()
    run.write_state("failed", reason="begun", step=STEP, device="cpu", exit_status=1)
    write_versions(run.versions, device="cpu", world_size=2, layout={"ranks": 2}, step=found.step)
    write_facts(run.path / "facts.json", FACTS)
    drop_lines_after(run.metrics, found.step)
    with run.metrics.open("a") as metrics:
        metrics.write(json.dumps({"event": "step", "step": 7, "lm loss": 1.0}) + "\n")
    assert not endings.has_failed_since(run, run.state())
    endings.wait_until_ended(run, seconds=0)
    save_checkpoint(run, 10)
    endings.write_finished(run, run_plan(checked))
    assert run.state()["status"] == "finished" and before != run.state()
    return moved


def is_kept(path, content):
    """Whether a file's content is still there: in the file, aside, or a line here, a line there."""
    files = [each for each in path.parent.glob(f"{path.name.split('.')[0]}*") if each.is_file()]
    texts = [each.read_bytes() for each in files]
    lines = {line for text in texts for line in text.split(b"\n")}
    return any(text.startswith(content) for text in texts) or set(content.split(b"\n")) <= lines


def tst_megatron(monkeypatch, capfd, *arguments):
    """Exit status and all that is printed; anything else than an exit is a failure."""
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return code, " ".join((printed.out + printed.err).split())


@pytest.mark.parametrize("name", DAMAGE)
def test_start_goes_on_over_damaged_records_and_keeps_them(run, checked, name):
    """All at once: what one of them stopped would not be reached by another."""
    before = {}
    for record in RECORDS:
        path = run.path / record
        DAMAGE[name](path)
        before[path] = path.read_bytes() if path.is_file() else None
    moved = start(run, checked)
    for path, content in before.items():
        # The tracker says again which checkpoint is the newest, and the start says what it said;
        # so are the facts of the run.
        if content is not None and path.name not in (TRACKER, "facts.json"):
            assert is_kept(path, content), path
        elif content is None and path.parent != run.slurm:
            (note,) = (line for line in moved if line.startswith(f"{path} is "))
            new = path.with_name(f"{path.name}.damaged")
            assert note.endswith(f": moved to {new.name}")
            assert os.readlink(new) == "gone" if new.is_symlink() else (new / "inside").exists()
    assert run.state()["step"] == 10
    assert read_facts(run.path / "facts.json") == {"format": 1, **FACTS}
    assert [row["step"] for row in read_metrics(run.metrics)][-1] == 7
    assert not Path("ran-code").exists()


@pytest.mark.parametrize("damage", [turned_into_a_file, linked_to_nothing])
def test_start_goes_on_where_a_folder_of_records_is_none(run, checked, damage):
    for name in ("tensorboard", "logs", "report"):
        shutil.rmtree(run.path / name)
    names = ("evaluations", "tensorboard", "logs", "report")
    for name in names:
        damage(run.path / name)
    moved = start(run, checked)
    assert [line.split(": moved to ")[1] for line in moved] == [f"{name}.damaged" for name in names]
    assert all(os.path.lexists(run.path / f"{name}.damaged") for name in names)


@pytest.mark.parametrize("damage", [turned_into_a_file, linked_to_nothing])
def test_checkpoints_that_are_no_folder_decide(run, checked, damage):
    shutil.move(run.checkpoints, run.path.parent / "elsewhere")
    damage(run.checkpoints)
    (problem,) = folder_problems(run, checked, fresh=False)
    assert str(run.checkpoints) in problem
    assert ("bring them back" if damage is turned_into_a_file else "Bring that back") in problem


@pytest.mark.parametrize("name", sorted(set(DAMAGE) - {"link to nothing"}))
def test_damaged_resolved_recipe_is_named_with_what_to_do(run, checked, name):
    DAMAGE[name](run.resolved)
    (problem,) = folder_problems(run, checked, fresh=False)
    assert problem.startswith(f"{run.resolved}: ") and "decides" in problem
    assert "Bring it back, from a backup or from another run folder of the same recipe" in problem
    assert not Path("ran-code").exists()


def test_resolved_recipe_that_lost_its_last_lines_is_damaged_and_no_other_run(run, checked):
    lines = run.resolved.read_text().splitlines(keepends=True)
    run.resolved.write_text("".join(lines[:4]))
    (problem,) = folder_problems(run, checked, fresh=False)
    assert problem.startswith(f"{run.resolved}: says no 'data'")


def test_copy_of_the_newest_checkpoint_stands_in_for_a_damaged_resolved_recipe(run, checked):
    copy, whole = identity(checked), run.resolved.read_text()
    cut(run.resolved)
    half = run.resolved.read_text()
    assert folder_problems(run, checked, fresh=False, copy=copy) == []
    (problem,) = folder_problems(run, checked, fresh=False, copy=copy | {"lr": 7})
    assert problem.startswith("lr: this run was started with 7")
    (note,) = prepare.prepare(run, run_plan(checked))
    assert note.startswith(f"{run.resolved} says no ")
    assert run.resolved.read_text() == whole
    assert run.resolved.with_name("resolved.yaml.damaged").read_text() == half


def test_second_damaged_file_does_not_take_the_place_of_the_first(run, checked):
    for text in ("first", "second"):
        run.state_file.write_text(text)
        prepare.prepare(run, run_plan(checked))
        run.write_state("failed", reason="", step=0, device="cpu", exit_status=1)
    kept = [run.path / "state.json.damaged", run.path / "state.json.damaged-2"]
    assert [path.read_text() for path in kept] == ["first", "second"]


def test_layouts_that_can_be_read_are_kept(run, checked):
    versions = json.loads(run.versions.read_text())
    versions["layouts"].append({"after step": None})
    run.versions.write_text(json.dumps(versions))
    (note,) = prepare.prepare(run, run_plan(checked))
    assert "versions.json says 1 of 2 layouts that are none: moved to" in note
    layouts = json.loads(run.versions.read_text())["layouts"]
    assert layouts == [{"after step": 0, "layout": {"ranks": 1}}]
    assert prepare.prepare(run, run_plan(checked)) == []


def test_file_that_may_not_be_read_is_moved_aside(run, checked, monkeypatch):
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path == run.state_file and args[:1] == ("rb",):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert run.state() is None
    (note,) = prepare.prepare(run, run_plan(checked))
    assert note == f"{run.state_file} cannot be read (Permission denied): moved to {KEPT}"


def test_rank_waits_for_the_first_to_write_a_damaged_resolved_recipe_anew(
    run, checked, monkeypatch
):
    cut(run.resolved)
    monkeypatch.setattr(time, "sleep", lambda _: prepare.prepare(run, run_plan(checked)))
    prepare.wait_until_prepared(run, seconds=60.0)
    assert folder_problems(run, checked, fresh=False) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_status_shows_what_is_left_and_names_the_damage(run, monkeypatch, capfd, name):
    monkeypatch.setattr("tst_megatron.cli.runs.time.time", lambda: NOW)
    for record in RECORDS:
        if record != "metrics.jsonl":
            DAMAGE[name](run.path / record)
    code, said = tst_megatron(monkeypatch, capfd, "status", run.path)
    assert code == 0 and "8 of 10" in said
    assert "damaged state.json " in said and "not started" not in said
    DAMAGE[name](run.metrics)
    for flags in ((), ("--json",)):
        code, said = tst_megatron(monkeypatch, capfd, "status", run.path, *flags)
        assert code == 0
        assert "metrics.jsonl is a " in said or name not in ("folder", "link to nothing")
    DAMAGE[name](run.resolved)
    code, said = tst_megatron(monkeypatch, capfd, "status", run.path)
    assert code == 2 and "resolved.yaml" in said


def test_status_survives_numbers_that_mean_nothing(run, monkeypatch, capfd):
    row = {"event": "step", "step": 8, "bag size": "x", "lm loss": [], "phase": 5}
    times = [1e300, "2", None, True, -1, 10**400, float("nan"), float("inf"), {}, 0]
    with run.metrics.open("a") as file:
        for number in times:
            named = dict.fromkeys(("step seconds", "TFLOP/s per device", "lm loss"), number)
            file.write(json.dumps(row | named) + "\n")
        for step in (9.5, -1, True, 10**30, 11, "8", None):
            file.write(json.dumps(row | {"step": step}) + "\n")
        file.write(json.dumps({"event": "validation", "step": 8, "lm loss validation": "x"}))
    for flags in ((), ("--json",)):
        code, said = tst_megatron(monkeypatch, capfd, "status", run.path, *flags)
        assert code == 0 and ("8 of 10" in said or '"step": 8,' in said)


def test_lines_that_are_no_rows_and_second_rows_are_dropped_and_the_rest_is_in_order(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"event": "step", "step": step, "lm loss": 1.0} for step in (1, 3, 2, 2, 4)]
    good = [json.dumps(row).encode() for row in rows]
    bad = [b"[" * 9999, b'{"event": "step"}', b"\xff\xfe", b'{"step": 3}', b"", b"torn {"]
    lines = [line for pair in zip(good, bad, strict=False) for line in pair] + bad[5:]
    metrics.write_bytes(b"\n".join(lines))
    assert drop_lines_after(metrics, 3) == 7
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 3]
    dropped = metrics.with_name("metrics.dropped.jsonl").read_bytes()
    assert sorted(dropped.split(b"\n")[:-1]) == sorted([*bad, good[3], good[4]])
    assert events_at(metrics, 3) == {"step"}
    assert drop_lines_after(metrics, 3) == 0


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_facts_are_refused_by_their_reader(tmp_path, name):
    path = tmp_path / "facts.json"
    assert read_facts(path) is None
    write_facts(path, FACTS)
    DAMAGE[name](path)
    with pytest.raises(Damaged):
        read_facts(path)


def test_facts_of_a_later_format_are_not_read(tmp_path):
    path = tmp_path / "facts.json"
    write_facts(path, FACTS | {"format": 2})
    with pytest.raises(Damaged, match="is of format 2, and this version reads 1"):
        read_facts(path)
