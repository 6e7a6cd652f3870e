"""The job scripts on a real Slurm, with a stand-in for the command that trains."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import GPU_NODES, wait_until
from jobs import STUBS, Jobs, events, names

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
RECIPE = "examples/quickstart/tst.yaml"
QUICK = {"WATCH_SECONDS": "1", "PREFLIGHT": "no"}


@pytest.fixture
def jobs(cluster, checkout):
    return Jobs(cluster, checkout, {"PATH_IN_FRONT": str(STUBS)})


@pytest.fixture
def run(checkout):
    return checkout / "runs" / "quickstart-tst"


def of_rank(run, rank):
    lines = (run / "logs" / f"rank-{rank}.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_shellcheck_finds_nothing(cluster):
    files = [*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm/lib").glob("*.sh")]
    files += [*STUBS.iterdir(), *(ROOT / "tools").glob("*.sh")]
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, files)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_would_take_the_script(cluster, jobs, script):
    options = (
        ["--test-only", "--array=1-2"] if script.startswith(("sweep", "prep")) else ["--test-only"]
    )
    options += ["--partition=gpu"] if "64gpu" in script else []
    assert "to start at" in jobs.submit(script, RECIPE, options=options)


def test_64_gpu_script_runs_unchanged_on_8_nodes_of_8(cluster, jobs, checkout):
    image, secrets = checkout / "tst.sqsh", checkout / "secrets"
    image.touch()
    secrets.write_text("HF_TOKEN=canary-of-the-file\n")
    secrets.chmod(0o600)
    job = jobs.submit(
        "pretrain-10b-a1b-64gpu.sbatch",
        options=["--partition=gpu"],
        TST_ENVIRONMENT="pyxis",
        TST_IMAGE=str(image),
        TST_MOUNTS="/usr:/data:ro",
        TST_SECRETS=str(secrets),
        NCCL_SOCKET_IFNAME="ib0",
        WANDB_API_KEY="canary-of-the-environment",
    )
    log = jobs.ended(job, "COMPLETED")
    run = checkout / "runs" / "qwen3-10b-a1b-tst"
    ranks = [of_rank(run, rank) for rank in range(64)]
    port = ranks[0]["MASTER_PORT"]
    for rank, seen in enumerate(ranks):
        node = GPU_NODES[rank // 8]
        assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (
            str(rank),
            str(rank % 8),
            "64",
        )
        assert (seen["SLURMD_NODENAME"], seen["MASTER_ADDR"], seen["MASTER_PORT"]) == (
            node,
            "127.0.0.1",
            port,
        )
        assert seen["STUB_container_image"] == str(image)
        assert seen["STUB_container_workdir"] == str(checkout)
        assert seen["STUB_container_mounts"].split(",") == [
            f"{checkout}:{checkout}",
            f"{secrets}:{secrets}:ro",
            "/usr:/data:ro",
        ]
        assert "STUB_no_container_mount_home" in seen
        named = seen["STUB_container_env"].split(",")
        # What is set is named, or a value of the image's would win.
        for name in (
            "MASTER_ADDR",
            "MASTER_PORT",
            "NCCL_SOCKET_IFNAME",
            "GLOO_SOCKET_IFNAME",
            "A_PROFILE_SAYS",
        ):
            assert name in named and name in seen
        assert (seen["GLOO_SOCKET_IFNAME"], seen["A_PROFILE_SAYS"]) == ("ib0", "so")
        assert seen["secrets"] == "25,18", "each rank has both secrets"
        assert seen["arguments"] == f"train examples/qwen3-10b-a1b/tst.yaml --run-folder {run}"
    assert 20_000 <= int(port) < 30_000
    assert f"environment: MASTER_PORT={port}" in log and "environment: A_PROFILE_SAYS=so" in log
    assert f"image: {image}" in log
    files = [path for path in checkout.rglob("*") if path.is_file() and path != secrets]
    assert len(files) > 64
    assert not [path for path in files if b"canary" in path.read_bytes()]
    assert names(run) == ["start", "end"]


def test_run_folder_outside_of_the_project_is_mounted(cluster, jobs, checkout):
    """Also one whose name begins like the project's."""
    image = checkout / "tst.sqsh"
    image.touch()
    outside = checkout.with_name("checkout-runs") / "one"
    scratch = checkout.with_name("scratch")
    scratch.mkdir()
    container = {
        "TST_ENVIRONMENT": "pyxis",
        "TST_IMAGE": str(image),
        "TST_SCRATCH": str(scratch),
    }
    job = jobs.submit("pretrain.sbatch", RECIPE, RUN_FOLDER=str(outside), **container, **QUICK)
    jobs.ended(job, "COMPLETED")
    mounts = of_rank(outside, 1)["STUB_container_mounts"].split(",")
    assert mounts == [f"{each}:{each}" for each in (checkout, outside, scratch)]


def test_address_is_the_first_node_where_none_is_given(cluster, jobs, run):
    job = jobs.submit(
        "pretrain.sbatch", RECIPE, TST_MASTER_ADDR="", TST_ADDRESS_SUFFIX="i", **QUICK
    )
    jobs.ended(job, "COMPLETED")
    assert of_rank(run, 1)["MASTER_ADDR"] == "m1i"


def test_apptainer_runs_every_task_in_the_image(cluster, jobs, checkout, run):
    stub = checkout / "bin" / "apptainer"
    stub.parent.mkdir()
    # Does what Apptainer does with variables, and leaves its arguments where the test finds them.
    stub.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$*" >"runs/apptainer-$SLURM_PROCID"\n'
        "while [[ $1 != bash ]]; do shift; done\n"
        'for name in ${!APPTAINERENV_*}; do export "${name#APPTAINERENV_}=${!name}"; done\n'
        'exec "$@"\n'
    )
    stub.chmod(0o755)
    image = checkout / "tst.sif"
    image.touch()
    both = f"{stub.parent}:{STUBS}"
    job = jobs.submit(
        "pretrain.sbatch",
        RECIPE,
        TST_ENVIRONMENT="apptainer",
        TST_IMAGE=str(image),
        PATH_IN_FRONT=both,
        **QUICK,
    )
    jobs.ended(job, "COMPLETED")
    arguments = (checkout / "runs" / "apptainer-1").read_text()
    assert f"exec --no-home --bind {checkout}:{checkout} --pwd {checkout} {image} bash" in arguments
    assert of_rank(run, 1)["A_PROFILE_SAYS"] == "so"


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"TST_ENVIRONMENT": "docker"}, (), "must be one of: plain pyxis apptainer"),
        ({"TST_ENVIRONMENT": "pyxis"}, (), "needs TST_IMAGE"),
        (
            {"TST_ENVIRONMENT": "pyxis", "TST_IMAGE": "/absent.sqsh"},
            (),
            "TST_IMAGE='/absent.sqsh': no such file",
        ),
        ({"TST_SITE": "absent.env"}, (), "TST_SITE=absent.env: no such file"),
        (
            {},
            ("--partition=gpu", "--ntasks-per-node=4", "--gpus-per-node=8"),
            "one task for each GPU. Give --ntasks-per-node=8",
        ),
    ],
)
def test_bad_input_ends_the_job_at_once(cluster, jobs, run, variables, options, message):
    job = jobs.submit("pretrain.sbatch", RECIPE, options=options, **variables)
    assert message in jobs.ended(job, "FAILED")
    assert cluster.fact(job, "ExitCode") == "2:0"
    assert cluster.fact(job, "Restarts") == "0"


WRONG = {
    "evaluate.sbatch": (("absent",), "MODEL='absent': no such folder"),
    "export.sbatch": (("examples", "-x"), "OUTPUT='-x': must be a path"),
    "merge-data.sbatch": (("text", "1e3"), "NUM_SHARDS='1e3': must be a whole number"),
    "preflight.sbatch": ((), "PREFLIGHT_MINUTES='1.5': must be a whole number"),
    "prepare-data.sbatch": (("absent", "text", "*"), "TOKENIZER='absent': no such file"),
    "pretrain-10b-a1b-64gpu.sbatch": (("lr",), "'lr' is not KEY=VALUE"),
    "pretrain.sbatch": ((RECIPE,), "HANG_SECONDS='08': must be a whole number"),
    "sweep.sbatch": ((RECIPE, "twice.txt"), "line 2: k4 is the name of line 1 too"),
}
"""Of each script: arguments, and what is said of them or of a variable."""


def test_wrong_input_of_each_script_ends_its_job_with_2(cluster, jobs, checkout):
    (checkout / "twice.txt").write_text("k4 tst.bag-size=4\nk4 tst.bag-size=2\n")
    variables = {"PREFLIGHT_MINUTES": "1.5", "HANG_SECONDS": "08"}
    options = {
        "pretrain-10b-a1b-64gpu.sbatch": ["--partition=gpu"],
        "prepare-data.sbatch": ["--output=%x-%A.log"],
        "sweep.sbatch": ["--array=2", "--output=%x-%A.log"],
    }
    submitted = {
        script: jobs.submit(script, *arguments, options=options.get(script, ()), **variables)
        for script, (arguments, _) in WRONG.items()
    }
    assert sorted(submitted) == SCRIPTS
    for script, job in submitted.items():
        log = jobs.ended(job, "FAILED")
        assert WRONG[script][1] in log
        assert cluster.fact(job, "ExitCode") == "2:0", log
    assert not (checkout / "runs").exists()


def test_job_without_the_users_variables_trains(cluster, jobs, checkout, run):
    """`sbatch --export=NONE`, which srun would hand on to its tasks."""
    stub = checkout / ".venv" / "bin" / "tst-megatron"
    stub.parent.mkdir(parents=True)
    shutil.copy(STUBS / "tst-megatron", stub)
    (stub.parent / "activate").write_text(f"PATH={stub.parent}:$PATH\n")
    site = "TST_MASTER_ADDR=127.0.0.1\nunset SLURM_NTASKS SLURM_NPROCS\n"
    (checkout / "slurm" / "site.env").write_text(site)
    job = jobs.submit("pretrain.sbatch", RECIPE, options=["--export=NONE"], WATCH_SECONDS="lost")
    jobs.ended(job, "COMPLETED")
    ranks = [of_rank(run, rank) for rank in range(2)]
    assert [(seen["RANK"], seen["WORLD_SIZE"]) for seen in ranks] == [("0", "2"), ("1", "2")]
    assert all(seen["OMP_NUM_THREADS"] == "1" for seen in ranks)


ASK = "from tst_megatron.training.rank import rank_of_environment as rank; print('rank', rank())"


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (("srun", "--ntasks=1", "--pty"), "rank None"),
        (("salloc", "--ntasks=4"), "rank None"),
        # What salloc starts as the person's shell where the site wants it on a node.
        (
            ("salloc", "--ntasks=4", "srun", "--interactive", "--preserve-env", "-n1", "--pty"),
            "rank None",
        ),
        (("srun", "--ntasks=2"), "MASTER_ADDR and MASTER_PORT: not set"),
    ],
)
def test_shell_in_a_job_is_no_rank(cluster, shell, expected):
    # With a terminal, without which there is no --pty.
    terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"
    python = [sys.executable, "-c", ASK]
    environment = cluster.environment | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", terminal, *shell, *python]
    assert expected in cluster.run(*command, check=False, env=environment)


def test_refused_recipe_is_not_tried_again(cluster, jobs, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_CHECK="2", **QUICK)
    jobs.ended(job, "FAILED")
    assert cluster.fact(job, "ExitCode") == "2:0"
    assert names(run) == ["start", "end"]


def test_site_file_fills_in_and_the_command_line_wins(cluster, jobs, checkout, run):
    (checkout / "slurm" / "site.env").write_text("NCCL_SOCKET_IFNAME=ib0\nNCCL_DEBUG=INFO\n")
    job = jobs.submit("pretrain.sbatch", RECIPE, NCCL_DEBUG="TRACE", **QUICK)
    jobs.ended(job, "COMPLETED")
    seen = of_rank(run, 0)
    assert (seen["GLOO_SOCKET_IFNAME"], seen["NCCL_DEBUG"]) == ("ib0", "TRACE")


def test_run_without_progress_is_given_up_and_says_why(cluster, jobs, run):
    limit = {"MAX_STARTS_WITHOUT_PROGRESS": "2"}
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_ENDING="failed", **limit, **QUICK)
    log = jobs.ended(job, "FAILED")
    assert cluster.fact(job, "ExitCode") == "93:0"
    assert names(run) == ["start", "end", "requeue", "start", "end", "give-up"]
    assert "2 starts in a row saved nothing beyond step 0" in log
    assert "Last: failed: as the stub was told" in log
    # One log, of both starts.
    assert log.count(f"of job {job}") == 2
    # A person who submits again, a second later at the earliest, gets as many starts again.
    time.sleep(1)
    again = jobs.submit("pretrain.sbatch", RECIPE, **limit, **QUICK)
    jobs.ended(again, "COMPLETED")


def test_progress_starts_the_count_anew(cluster, jobs, run):
    stub = {"STUB_ENDING": "stopped", "MAX_STARTS_WITHOUT_PROGRESS": "2"}
    job = jobs.submit("pretrain.sbatch", RECIPE, **stub, **QUICK)
    wait_until(lambda: "requeue" in names(run), what="a requeue")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("7")
    jobs.ended(job, "FAILED")
    assert [step for event, _, step, _ in events(run) if event == "start"] == [0, 7, 7]


def test_run_that_must_not_be_restarted_is_not(cluster, jobs, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_ENDING="refused", **QUICK)
    assert "must not be restarted: as the stub was told" in jobs.ended(job, "FAILED")
    assert cluster.fact(job, "ExitCode") == "93:0"
    assert names(run) == ["start", "give-up"]


def test_cancelled_job_stays_cancelled(cluster, jobs, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_ENDING="never", **QUICK)
    wait_until((run / "was-stuck").exists, what="training")
    cluster.run("scancel", job)
    jobs.ended(job, "CANCELLED")
    wait_until(lambda: not cluster.jobs(), what="the end of the job")
    assert names(run) == ["start", "end"]
    assert "ended from outside (COMPLETING/None)" in jobs.log(job)


def test_job_that_depends_on_a_run_waits_through_its_requeues(cluster, jobs, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_SICK_RESULT="m3", **QUICK)
    wanted = ["--parsable", f"--dependency=afterok:{job}", "--output=/dev/null"]
    after = cluster.run("sbatch", *wanted, "--wrap=true").strip()
    wait_until(lambda: "requeue" in names(run), what="a requeue")
    cluster.wait(job, state=["PENDING"])
    assert cluster.fact(after, "JobState") == "PENDING"
    jobs.ended(job, "COMPLETED")
    jobs.ended(after, "COMPLETED")


def test_chain_goes_on_link_by_link(cluster, jobs, run):
    chain = ["--no-requeue", "--dependency=singleton", "--job-name=a-chain"]
    first = jobs.submit("pretrain.sbatch", RECIPE, options=chain, STUB_ENDING="stopped", **QUICK)
    second = jobs.submit("pretrain.sbatch", RECIPE, options=chain, **QUICK)
    third = jobs.submit("pretrain.sbatch", RECIPE, options=chain, **QUICK)
    jobs.ended(first, "FAILED")
    jobs.ended(second, "COMPLETED")
    assert "this run is finished" in jobs.ended(third, "COMPLETED")
    assert [(event, job) for event, job, *_ in events(run)] == [
        ("start", first),
        ("end", first),
        ("start", second),
        ("end", second),
    ]


def test_links_that_waited_when_the_run_was_given_up_do_not_start(cluster, jobs, run):
    chain = ["--no-requeue", "--dependency=singleton", "--job-name=another-chain"]
    first = jobs.submit("pretrain.sbatch", RECIPE, options=chain, STUB_ENDING="refused", **QUICK)
    second = jobs.submit("pretrain.sbatch", RECIPE, options=chain, **QUICK)
    jobs.ended(first, "FAILED")
    assert "not started: the run was given up" in jobs.ended(second, "FAILED")
    assert cluster.fact(second, "ExitCode") == "93:0"


def test_stop_file_keeps_a_run_from_starting(cluster, jobs, run):
    run.mkdir(parents=True)
    (run / "STOP").touch()
    job = jobs.submit("pretrain.sbatch", RECIPE, **QUICK)
    assert "Delete it to go on" in jobs.ended(job, "FAILED")
    assert names(run) == ["stop-file"]


def test_two_jobs_do_not_train_one_run(cluster, jobs, run):
    (run / "slurm").mkdir(parents=True)
    holder = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 1000").strip()
    line = f"2026-01-01T00:00:00Z\t{holder}\tstart\t0\tm1\n"
    (run / "slurm" / "events.tsv").write_text(line)
    cluster.wait(holder, state=["RUNNING"])
    job = jobs.submit("pretrain.sbatch", RECIPE, **QUICK)
    assert f"job {holder} is training in {run}" in jobs.ended(job, "FAILED")
    cluster.run("scancel", holder)


def test_sick_node_is_named_and_left_out(cluster, jobs, checkout, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_SICK="m1", WATCH_SECONDS="1")
    log = jobs.ended(job, "COMPLETED")
    assert "sick node: m1" in log
    assert cluster.fact(job, "ExcNodeList") == "m1"
    assert names(run) == ["start", "sick", "end", "requeue", "start", "end"]
    assert [text for event, _, _, text in events(run) if event == "start"] == ["m[1-2]", "m[2-3]"]
    assert (checkout / "slurm" / "cordoned-nodes").read_text().startswith("m1 ")
    # Also by a job that did not know.
    shutil.rmtree(run)
    later = jobs.submit("pretrain.sbatch", RECIPE, **QUICK)
    assert "m1 is noted as sick" in jobs.ended(later, "COMPLETED")
    assert [text for event, _, _, text in events(run) if event == "start"] == ["m[1-2]", "m[2-3]"]


@pytest.mark.parametrize(
    ("broken", "sick"), [("m2", {"m2"}), ("m1", {"m1"}), ("none", set()), ("all", set())]
)
def test_network_is_asked_in_pairs_where_no_node_is_sick_by_itself(
    cluster, jobs, checkout, broken, sick
):
    job = jobs.submit(
        "preflight.sbatch",
        options=["--nodes=3"],
        STUB_BROKEN_NETWORK=broken,
        TST_MASTER_ADDR="address-of-m1",
    )
    jobs.ended(job, "COMPLETED" if broken == "none" else "FAILED")
    folder = checkout / "preflight" / job
    assert set((folder / "sick-nodes").read_text().split()) == sick
    if broken != "none":
        pairs = {path.name for path in folder.iterdir() if "+" in path.name}
        assert pairs == {"m1+m2", "m2+m3", "m1+m3"}
        # An address that was given is that of the first node.
        assert (folder / "m2+m3" / "address-m2").read_text() == "m2\n"
        assert (folder / "m1+m3" / "address-m3").read_text() == "address-of-m1\n"


def test_merge_of_fewer_shards_than_there_are_is_refused(cluster, jobs, checkout):
    for number in range(3):
        (checkout / "text.shards" / f"{number:05d}").mkdir(parents=True)
    job = jobs.submit("merge-data.sbatch", "text", "2")
    assert "has more than 2 shards" in jobs.ended(job, "FAILED")


def test_links_of_a_chain_are_kept_from_a_sick_node(cluster, jobs, run):
    chain = ["--no-requeue", "--dependency=singleton", "--job-name=chain-and-sick"]
    sick = {"STUB_SICK": "m1", "WATCH_SECONDS": "1"}
    first = jobs.submit("pretrain.sbatch", RECIPE, options=chain, **sick)
    second = jobs.submit("pretrain.sbatch", RECIPE, options=chain, **sick)
    jobs.ended(first, "FAILED")
    jobs.ended(second, "COMPLETED")
    assert [text for event, _, _, text in events(run) if event == "start"] == ["m[1-2]", "m[2-3]"]


def test_node_that_a_run_names_is_left_out_beside_those_of_the_user(cluster, jobs, checkout, run):
    options = ["--nodes=1", "--exclude=m1"]
    job = jobs.submit("pretrain.sbatch", RECIPE, options=options, STUB_SICK_RESULT="m2", **QUICK)
    jobs.ended(job, "COMPLETED")
    assert cluster.fact(job, "ExcNodeList") in ("m1,m2", "m[1-2]")
    assert names(run) == ["start", "sick", "end", "requeue", "start", "end"]
    assert [text for event, _, _, text in events(run) if event == "start"] == ["m2", "m3"]
    assert "as the stub was told" in (checkout / "slurm" / "cordoned-nodes").read_text()


def test_state_of_an_earlier_start_decides_nothing(cluster, jobs, run):
    run.mkdir(parents=True)
    refused = '{\n  "status": "failed",\n  "exit_status": 93,\n  "reason": "long ago"\n}\n'
    (run / "state.json").write_text(refused)
    stub = {"STUB_ENDING": "silent", "MAX_STARTS_WITHOUT_PROGRESS": "1"}
    job = jobs.submit("pretrain.sbatch", RECIPE, **stub, **QUICK)
    log = jobs.ended(job, "FAILED")
    assert "1 starts in a row" in log and "long ago" not in log


def test_signal_before_the_time_limit_ends_no_check(cluster, jobs, run):
    job = jobs.submit("pretrain.sbatch", RECIPE, STUB_CHECK_SECONDS="10", **QUICK)
    wait_until(lambda: "start" in names(run), what="the check")
    time.sleep(1)
    cluster.run("scancel", "--signal=USR2", job)
    jobs.ended(job, "COMPLETED")
    assert names(run) == ["start", "end"]


def test_sweep_trains_a_run_for_each_line(cluster, jobs, checkout):
    job = jobs.submit(
        "sweep.sbatch", RECIPE, "slurm/ablations.txt", "lr=1e-3", options=["--array=1-2"], **QUICK
    )
    wait_until(
        lambda: len([*checkout.glob("*.log")]) == 2 and job not in cluster.jobs(),
        what="both",
    )
    sweep = checkout / "runs" / "quickstart-tst-sweep"
    assert sorted(path.name for path in sweep.iterdir()) == ["inverse", "uniform"]
    arguments = of_rank(sweep / "inverse", 0)["arguments"]
    assert arguments == f"train {RECIPE} tst.slot-weights=1/i lr=1e-3 --run-folder {sweep}/inverse"
    assert {job for _, job, *_ in events(sweep / "inverse")} == {f"{job}_2"}


def test_no_script_shows_its_environment_or_its_lines():
    for path in [*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm/lib").glob("*.sh")]:
        text = path.read_text()
        assert not re.search(r"printenv|set -[a-zA-Z]*x|^\s*env\s*$", text, re.MULTILINE), path
        assert os.access(path, os.R_OK)
