"""Every fault that a run on a cluster must survive; ``make test-slurm``, half an hour.

Not collected by ``make test``, which has two of them (``test_cluster_runs.py``).
"""

import subprocess
import sys
import time

import pytest
import runs
from cluster import wait_until
from jobs import STUBS, Jobs, events, names

KEYS = " ".join(runs.KEYS)

ROOMY = {"START_SECONDS": "300", "HANG_SECONDS": "300"}


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    prepared.ended(runs.submit(prepared, runs.UNINTERRUPTED), "COMPLETED")


CASES = {
    "a-signal": (runs.ask_to_stop, (), ROOMY),
    "a-killed-rank": (runs.kill_rank, (), ROOMY),
    "a-hung-rank": (runs.hang_rank, (), {"START_SECONDS": "300", "HANG_SECONDS": "20"}),
    "a-node-that-dies": (runs.kill_node, (), ROOMY),
    "a-job-that-preempts": (runs.preempt, (), ROOMY),
}


@pytest.fixture
def measured(request, record_property):
    began = time.monotonic()
    yield
    print(f"\n{request.node.name}: {time.monotonic() - began:.0f} s")


@pytest.mark.parametrize("name", CASES)
def test_run_ends_as_one_without_the_fault(prepared, uninterrupted, measured, name):
    do, options, variables = CASES[name]
    is_asked = name in ("a-signal", "a-job-that-preempts")
    keys = runs.RARE_SAVES if is_asked else runs.KEYS
    job = runs.submit(prepared, name, options=options, keys=keys, **variables)
    run = runs.folder(prepared, name)
    do(prepared, job, run)
    prepared.ended(job, "COMPLETED")
    runs.expect_same(prepared, run)
    if is_asked:
        runs.expect_saved_on_request(run)
    if name == "a-hung-rank":
        assert "hang" in names(run)
        stacks = (run / "logs" / "rank-0.log").read_text()
        assert "Current thread" in stacks and "all_reduce" in stacks, "what rank 0 waited in"
    if name == "a-node-that-dies":
        first, second = (text for event, _, _, text in events(run) if event == "start")
        assert first != second, "the job went on with the nodes that were left"
        died = next(node for node in ("m1", "m2", "m3") if not node_is_up(prepared, node))
        prepared.cluster.start_node(died)
        wait_until(lambda: node_is_up(prepared, died), what=f"{died} to come back")


def node_is_up(jobs, node):
    return "idle" in jobs.cluster.run("sinfo", "-h", "-n", node, "-p", "cpu", "-o", "%T").strip("*")


def test_run_longer_than_its_time_limit_ends_as_one_without(prepared, measured):
    """A limit has whole minutes, and the signal comes up to a minute early: 90 to 150 s here."""
    prepared.ended(runs.submit(prepared, "no-limit", keys=runs.LONG), "COMPLETED")
    options = ("--time=4", "--signal=USR2@90")
    job = runs.submit(prepared, "a-time-limit", keys=runs.LONG, options=options, **ROOMY)
    run = runs.folder(prepared, "a-time-limit")
    prepared.ended(job, "COMPLETED", seconds=1500)
    texts = [text for event, _, _, text in events(run) if event == "end"]
    assert set(texts[:-1]) == {"stopped: asked to stop; a checkpoint was saved"}
    runs.expect_same(prepared, run, reference="no-limit", steps=runs.LONG_STEPS)


def test_run_that_is_stuck_until_its_time_limit_is_started_again(cluster, checkout, measured):
    jobs = Jobs(cluster, checkout, {"PATH_IN_FRONT": str(STUBS)})
    variables = {"PREFLIGHT": "no", "STUB_ENDING": "never"}
    options = ["--time=1", "--signal=USR2@30"]
    job = jobs.submit("pretrain.sbatch", runs.RECIPE, options=options, **variables)
    jobs.ended(job, "COMPLETED")
    run = checkout / "runs" / "quickstart-tst"
    assert names(run) == ["start", "end", "requeue", "start", "end"]
    assert "TimeLimit" in next(text for event, _, _, text in events(run) if event == "end")


def test_chain_of_jobs_ends_as_one_run(prepared, uninterrupted, measured):
    chain = ("--no-requeue", "--dependency=singleton", "--job-name=chain-of-faults")
    links = [runs.submit(prepared, "a-chain", options=chain, **ROOMY) for _ in range(3)]
    run = runs.folder(prepared, "a-chain")
    runs.ask_to_stop(prepared, links[0], run)
    prepared.ended(links[0], "FAILED")
    prepared.ended(links[1], "COMPLETED")
    assert "this run is finished" in prepared.ended(links[2], "COMPLETED")
    runs.expect_same(prepared, run)


def train_in_a_shell_of_srun(prepared, words):
    terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    train = f"{sys.executable} -m tst_megatron train {runs.RECIPE} {words} {KEYS}"
    shell = ["srun", "--ntasks=1", "--pty", "bash", "-c", train]
    return subprocess.run(
        [sys.executable, "-c", terminal, *shell],
        cwd=prepared.folder,
        # As many threads as the job's ranks, or sums would be made in another order.
        env=prepared.cluster.environment | {"OMP_NUM_THREADS": "1"},
        check=False,
    ).returncode


def test_shell_of_srun_trains_as_outside_of_slurm(prepared, uninterrupted, measured):
    assert train_in_a_shell_of_srun(prepared, "--nproc 2 --run-folder runs/interactive") == 0
    run = runs.folder(prepared, "interactive")
    assert runs.losses(run) == runs.losses(runs.folder(prepared, runs.UNINTERRUPTED))
    assert (
        train_in_a_shell_of_srun(prepared, "--run-folder runs/alone expert-model-parallel-size=1")
        == 0
    )
    # One rank adds up in another order.
    alone = runs.losses(runs.folder(prepared, "alone"))
    assert alone.keys() == runs.losses(run).keys() and alone != runs.losses(run)


def test_stop_file_ends_a_run_with_a_checkpoint_and_its_deletion_lets_it_go_on(
    prepared, uninterrupted, measured
):
    run = runs.folder(prepared, "a-stop-file")
    job = runs.submit(prepared, "a-stop-file", **ROOMY)
    runs.wait_for_step(run, 8)
    (run / "STOP").touch()
    prepared.ended(job, "FAILED")
    assert prepared.cluster.fact(job, "ExitCode") == "75:0"
    event, _, step, _ = events(run)[-1]
    assert event == "stop-file" and step >= 8
    (run / "STOP").unlink()
    prepared.ended(runs.submit(prepared, "a-stop-file", **ROOMY), "COMPLETED")
    runs.expect_same(prepared, run)
