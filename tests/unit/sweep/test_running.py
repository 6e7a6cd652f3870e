"""Training in turns, with a command that stands for ``tst-megatron``: order, failures, kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from sweep_runs import FAKE, SHORT, TST, options

from tst_megatron.sweep import command
from tst_megatron.sweep.jobs import environments
from tst_megatron.sweep.plan import read_plan
from tst_megatron.sweep.speed import Speed, own_steps_done, seconds_left
from tst_megatron.system.processes.lock import InUse, held

pytestmark = pytest.mark.usefixtures("outside_a_job")

ARMS = "tst,reset-embeddings,baseline,longer-1.5"
"""Two trunks with a branch each: at step 16 and at step 30."""
NAMES = [f"{arm}_seed-1234" for arm in ("tst", "reset-embeddings", "baseline", "longer-1.5")]


@pytest.fixture
def sweeping(text, tmp_path, monkeypatch):
    """Run a sweep to its end and return (status, what it printed): ``sweeping(**options)``."""
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr("tst_megatron.sweep.running.SECONDS_BETWEEN_LOOKS", 0.02)

    def run(*overrides, **changes):
        console = Console(record=True, width=200, file=open(os.devnull, "w"))
        made = options(tmp_path / "sweep", *overrides, text=text, **{"arms": ARMS, **changes})
        status = command.sweep(made, console, command=FAKE)
        return status, console.export_text()

    return run


def notes(tmp_path):
    path = tmp_path / "notes"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(tmp_path):
    """(command, run, step) in the order in which the commands started."""
    return [
        (words[0], words[1], words[3] if words[0] == "branch" else words[2])
        for words in notes(tmp_path)
        if words[0] != "check"
    ]


def steps(folder):
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["step"] for row in rows]


def expect_complete(tmp_path, names=NAMES):
    plan = read_plan(tmp_path / "sweep")
    assert [run.name for run in plan.runs] == names
    for run in plan.runs:
        folder = plan.run(run.name)
        assert json.loads((folder / "state.json").read_text())["status"] == "finished"
        assert steps(folder) == list(range(1, run.num_steps + 1))
        assert own_steps_done(plan, run) == run.num_own_steps
    assert not [path for path in (tmp_path / "sweep" / "runs").iterdir() if path.name[0] == "."]


def test_every_run_is_trained_after_its_trunk_and_a_branch_from_its_step(sweeping, tmp_path):
    status, said = sweeping()
    assert status == 0
    expect_complete(tmp_path)
    assert started(tmp_path) == [
        ("train", "tst_seed-1234", 0),
        ("branch", "reset-embeddings_seed-1234", 16),
        ("train", "reset-embeddings_seed-1234", 16),
        ("train", "baseline_seed-1234", 0),
        ("branch", "longer-1.5_seed-1234", 30),
        ("train", "longer-1.5_seed-1234", 30),
    ]
    # All have one shape, of which Megatron is asked once.
    assert [words for words in notes(tmp_path) if words[0] == "check"] == [
        ["check", "tst_seed-1234", os.environ.get("OMP_NUM_THREADS")]
    ]
    assert "reset-embeddings_seed-1234: starts from step 16 of tst_seed-1234" in said
    runs = tmp_path / "sweep" / "runs"
    assert f"compare  tst-megatron compare {runs}/* --html {tmp_path}/sweep/compare.html" in said
    assert "4 of 4 runs finished" in said
    longer = (runs / "longer-1.5_seed-1234" / "recipe.yaml").read_text()
    assert "train-iters: 60" in longer and "bag-size" not in longer


def test_same_command_again_starts_nothing(sweeping, tmp_path):
    sweeping()
    before = notes(tmp_path)
    status, said = sweeping()
    assert status == 0 and notes(tmp_path) == before
    assert said.count("finished") > 4


def test_new_runs_of_a_finished_sweep_are_trained_alone(sweeping, tmp_path):
    sweeping(arms="baseline")
    status, _ = sweeping(arms="baseline,longer-1.5,tst")
    assert status == 0
    expect_complete(tmp_path, [f"{arm}_seed-1234" for arm in ("baseline", "longer-1.5", "tst")])
    assert [run for word, run, _ in started(tmp_path) if word == "train"].count(NAMES[2]) == 1


def test_several_at_once_have_their_share_of_the_cores(sweeping, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("tst_megatron.sweep.jobs.num_cores", lambda: 12)
    monkeypatch.setenv("SECONDS_OF_A_STEP", "0.02")
    status, _ = sweeping(at_once=2, nproc=2)
    assert status == 0
    expect_complete(tmp_path)
    trained = [words for words in notes(tmp_path) if words[0] == "train"]
    assert [words[1] for words in trained[:2]] in ([NAMES[0], NAMES[2]], [NAMES[2], NAMES[0]])
    assert {(words[3], words[-1]) for words in trained} == {("2", "3")}


def test_runs_that_train_at_once_have_different_places(sweeping, tmp_path, monkeypatch):
    places = [{**os.environ, "OMP_NUM_THREADS": name} for name in ("11", "22")]
    monkeypatch.setattr(command, "environments", lambda **_: places)
    for place in places:
        place["SECONDS_OF_A_STEP"] = "0.02"
    assert sweeping(at_once=2)[0] == 0
    trained = [words for words in notes(tmp_path) if words[0] == "train"]
    assert {words[-1] for words in trained[:2]} == {words[-1] for words in trained[2:]}
    assert {words[-1] for words in trained} == {"11", "22"}


def test_run_that_fails_does_not_stop_the_others_and_is_named(sweeping, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", f"{NAMES[0]}@12")
    monkeypatch.setattr(sys, "argv", ["anything", "sweep", "my recipe.yaml"])
    status, said = sweeping()
    assert status == 1
    log = tmp_path / "sweep" / "logs" / f"{NAMES[0]}.log"
    assert log.read_text() == "the loss is NaN\n"
    last = said.splitlines()[-4:]
    assert last[0].startswith("2 of 4 runs finished")
    assert last[1] == f"{NAMES[0]}: failed: the loss is NaN (status 1) (log: {log})"
    assert last[2].startswith(
        f"{NAMES[1]}: failed: {NAMES[0]}, from which it branches, ended before step 16"
    )
    assert last[3] == "continue  tst-megatron sweep 'my recipe.yaml'"
    # Its reason is gone.
    monkeypatch.delenv("FAIL")
    assert sweeping()[0] == 0
    expect_complete(tmp_path)
    assert ("train", NAMES[0], 10) in started(tmp_path)


def test_branch_of_a_run_that_failed_later_is_trained_all_the_same(sweeping, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", f"{NAMES[2]}@36")
    status, said = sweeping()
    assert status == 1 and "3 of 4 runs finished" in said
    assert ("train", NAMES[3], 30) in started(tmp_path)


def test_branch_that_is_there_is_trained_and_not_made_again(sweeping, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", f"{NAMES[1]}@22")
    assert sweeping()[0] == 1
    monkeypatch.delenv("FAIL")
    assert sweeping()[0] == 0
    expect_complete(tmp_path)
    of_branch = [(word, step) for word, name, step in started(tmp_path) if name == NAMES[1]]
    assert of_branch == [("branch", 16), ("train", 16), ("train", 20)]


def test_branch_that_fails_is_a_failure_of_its_run(sweeping, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", f"{NAMES[1]}@20")
    sweeping()
    # As if somebody had taken the checkpoint away.
    runs = tmp_path / "sweep" / "runs"
    shutil.rmtree(runs / NAMES[1])
    for path in (runs / NAMES[0] / "checkpoints").glob("iter_0000016"):
        shutil.rmtree(path)
    monkeypatch.delenv("FAIL")
    status, said = sweeping()
    assert status == 1
    assert f"{NAMES[1]}: failed: status 2 (log: " in said
    assert "there is none" in (tmp_path / "sweep" / "logs" / f"{NAMES[1]}.log").read_text()


def test_recipe_that_megatron_refuses_ends_the_sweep_before_a_run_starts(
    sweeping, tmp_path, monkeypatch
):
    monkeypatch.setenv("REFUSE", "mtp")
    with pytest.raises(ValueError, match="^mtp: lr: Megatron does not like it$"):
        sweeping(arms="tst,mtp")
    assert started(tmp_path) == []
    monkeypatch.delenv("REFUSE")
    assert sweeping(arms="tst,mtp")[0] == 0


def test_another_sweep_in_the_folder_is_refused(sweeping, tmp_path, monkeypatch):
    sweeping(plan_only=True)
    monkeypatch.setattr(command, "held", partial(held, seconds=0.1))
    code = "import sys, time; from pathlib import Path\n"
    code += "from tst_megatron.system.processes.lock import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    folder = tmp_path / "sweep"
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match="in use by"):
            sweeping()
        other.kill()


def test_run_that_something_else_trains_is_waited_for(sweeping, tmp_path, monkeypatch):
    sweeping(arms="tst")
    (tmp_path / "sweep" / "runs" / NAMES[0] / "state.json").unlink()
    run = tmp_path / "sweep" / "runs" / NAMES[0]
    code = "import sys, time; from pathlib import Path\n"
    code += "from tst_megatron.system.processes.lock import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", code, run], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        status, said = sweeping(arms="tst")
        assert other.poll() == 0, "the sweep did not wait"
    assert status == 0 and f"{NAMES[0]}: in use by " in said
    with held(run):
        pass


# --- stops and kills -----------------------------------------------------------------------------


@pytest.fixture
def started_sweep(text, tmp_path):
    """Start the sweep as a process of its own: ``started_sweep(**environment)``."""
    processes = []
    words = ["sweep", str(TST), *SHORT, f"data={json.dumps({str(text): 1.0})}"]
    words += ["--arms", ARMS, "--share-trunks", "--output", str(tmp_path / "sweep")]
    code = (
        "import sys\nfrom tst_megatron.sweep import command, jobs\n"
        f"command.sweep.__kwdefaults__['command'] = {FAKE!r}\n"
        "from tst_megatron.cli.app import main\nmain()"
    )

    def start(*more, **environment):
        log = (tmp_path / "sweep.log").open("ab")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *words, *more],
                env={**os.environ, "NOTES": str(tmp_path / "notes"), **environment},
                stdout=log,
                stderr=log,
                # As in a terminal, where a Ctrl-C goes to all processes of a group.
                process_group=0,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(condition, what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_stop_saves_every_run_and_ends_with_75(started_sweep, tmp_path):
    process = started_sweep("--at-once", "2", SECONDS_OF_A_STEP="0.1")
    wait_until(lambda: len(started(tmp_path)) == 2, "two runs")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 75
    said = (tmp_path / "sweep.log").read_text()
    assert "stopping: " in said and "save a checkpoint" in said and "continue  " in said
    for name in (NAMES[0], NAMES[2]):
        state = json.loads((tmp_path / "sweep" / "runs" / name / "state.json").read_text())
        assert state["status"] == "stopped" and state["step"] > 0
    assert started_sweep().wait(timeout=60) == 0
    expect_complete(tmp_path)
    again = [step for word, name, step in started(tmp_path) if name == NAMES[0]]
    assert again == [0, state_step(tmp_path, NAMES[0], again)]


def state_step(tmp_path, name, again):
    """The newest checkpoint that the second start found, which the stop had saved."""
    assert again[1] > 0
    assert (tmp_path / "sweep" / "runs" / name / "checkpoints" / f"iter_{again[1]:07d}").is_dir()
    return again[1]


def test_stop_while_a_branch_is_made_is_no_failure(started_sweep, tmp_path):
    process = started_sweep(SECONDS_OF_A_BRANCH="20")
    wait_until(lambda: "branch" in [word for word, *_ in started(tmp_path)], "a branch")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 75
    said = (tmp_path / "sweep.log").read_text()
    assert "1 of 4 runs finished" in said and "failed" not in said
    assert started_sweep().wait(timeout=60) == 0
    expect_complete(tmp_path)


def test_runs_of_a_sweep_that_is_killed_save_and_end(started_sweep, tmp_path):
    process = started_sweep(SECONDS_OF_A_STEP="0.4")
    wait_until(lambda: started(tmp_path), "a run")
    time.sleep(1.0)
    process.kill()
    state = tmp_path / "sweep" / "runs" / NAMES[0] / "state.json"
    # All of its steps would take 16 s.
    wait_until(state.exists, "the end of the run", seconds=6.0)
    assert json.loads(state.read_text())["status"] == "stopped"


def test_second_interrupt_ends_the_runs_at_once(started_sweep, tmp_path):
    process = started_sweep(SECONDS_OF_A_STEP="20")
    wait_until(lambda: started(tmp_path), "a run")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert time.monotonic() - begun < 10


def children_of(process):
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_sweep_that_is_killed_at_any_moment_ends_complete(started_sweep, tmp_path):
    """Also while a branch is made, at every second kill."""
    moments = random.Random(3)
    slow = {"SECONDS_OF_A_STEP": "0.02", "SECONDS_OF_A_BRANCH": "0.6"}
    for number in range(3):
        process = started_sweep(**slow)
        known = len(started(tmp_path))
        wanted = "branch" if number % 2 == 0 else "train"
        wait_until(
            lambda known=known, wanted=wanted, process=process: (
                wanted in [word for word, *_ in started(tmp_path)[known:]]
                or process.poll() is not None
            ),
            f"a {wanted}",
        )
        time.sleep(moments.uniform(0.0, 0.4))
        children = children_of(process.pid)
        process.kill()
        process.wait()
        wait_until(
            lambda children=children: not [c for c in children if Path(f"/proc/{c}").exists()],
            "the end of what the sweep had started",
        )
    assert started_sweep().wait(timeout=60) == 0
    expect_complete(tmp_path)


# --- shares and estimates ------------------------------------------------------------------------


def test_shares_of_gpus_do_not_overlap(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4, 5,6")
    shares = environments(at_once=2, nproc=2, is_on_cpu=False)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in shares] == ["0,1", "4,5"]
    (alone,) = environments(at_once=1, nproc=2, is_on_cpu=False)
    assert alone["CUDA_VISIBLE_DEVICES"] == "0,1,4, 5,6"
    with pytest.raises(ValueError, match="3 ranks need 6 GPUs, and this machine shows 5"):
        environments(at_once=2, nproc=3, is_on_cpu=False)
    assert len(environments(at_once=4, nproc=9, is_on_cpu=True)) == 4


def test_threads_that_were_given_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environments(at_once=2, nproc=2, is_on_cpu=True)[1]["OMP_NUM_THREADS"] == "7"


def test_time_is_that_of_the_steps_and_starts_that_are_left(sweeping, tmp_path):
    sweeping(plan_only=True)
    plan = read_plan(tmp_path / "sweep")
    done = {NAMES[0]: 40, NAMES[1]: 4, NAMES[2]: 0, NAMES[3]: 0}
    speed = Speed(by=("a",), step_seconds=2.0)
    left = 20 + 40 + 30
    alone = seconds_left(plan, done, speed=speed, start_seconds=10.0, at_once=1)
    assert alone == left * 2.0 + 2 * 10.0
    assert seconds_left(plan, done, speed=speed, start_seconds=10.0, at_once=2) == alone / 2
    # Two runs of one after the other cannot take less than the longest.
    assert seconds_left(plan, done, speed=speed, start_seconds=10.0, at_once=9) == 40 * 2.0


def test_time_left_is_in_the_plan_of_a_sweep_that_has_begun(sweeping, tmp_path):
    sweeping(arms="tst")
    _, said = sweeping(arms="tst,baseline", plan_only=True)
    assert "about 20 s left, by the speed of tst_seed-1234: 0.5 s a step, without starts" in said
    run = tmp_path / "sweep" / "runs" / NAMES[2]
    run.mkdir()
    rows = [{"event": "step", "step": step, "step seconds": 1.5} for step in range(1, 11)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, said = sweeping(arms="tst,baseline", plan_only=True)
    assert "about 30 s left, by the speed of tst_seed-1234, baseline_seed-1234: 1 s a step" in said
    assert [line.split()[-3:] for line in said.splitlines() if line.startswith("baseline_")] == [
        ["10", "steps", "done"]
    ]


def test_time_is_said_by_the_first_run_as_soon_as_it_is_known(sweeping, monkeypatch):
    monkeypatch.setenv("SECONDS_OF_A_STEP", "0.03")
    monkeypatch.setattr("tst_megatron.sweep.running.SECONDS_BETWEEN_COUNTS", 0.1)
    _, said = sweeping(arms="tst,baseline")
    assert said.count(" left, by the speed of tst_seed-1234: 0.5 s a step") == 1
