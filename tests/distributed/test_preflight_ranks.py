"""The real command as gloo ranks of faked hosts, forked with torch imported."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import preflight_rank
import processes
import pytest

from tst_megatron.training.run.launch import free_port


def start(folder, *, hosts, per_node, ranks=None, options=(), by_rank=None):
    """Run ranks of a preflight; their statuses."""
    num_ranks = len(hosts) * per_node
    processes.start_server("preflight_rank")
    context = multiprocessing.get_context("forkserver")
    port = str(free_port())
    started = []
    for rank in range(num_ranks) if ranks is None else ranks:
        environment = {
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": str(num_ranks),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % per_node),
            "SLURMD_NODENAME": hosts[rank // per_node],
        }
        more = (by_rank or {}).get(rank, ("--backend", "gloo"))
        command = ["preflight", str(folder), *options, *more]
        command += ["--mebibytes", "1", "--min-free-gib", "0"]
        started.append(context.Process(target=preflight_rank.run, args=(environment, command)))
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        return [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()


def verdict(folder, hosts, num_ranks):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("SLURM")}
    command = [sys.executable, "-m", "tst_megatron", "preflight-verdict", str(folder)]
    done = subprocess.run(
        [*command, "--hosts", ",".join(hosts), "--ranks", str(num_ranks)],
        env={**environment, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, (folder / "sick-nodes").read_text()


def read(folder):
    return {path.name: json.loads(path.read_text()) for path in folder.glob("rank-*.json")}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """Two ranks on two nodes that are well, and the baseline that they made."""
    folder = tmp_path_factory.mktemp("two")
    file = folder / "baseline.json"
    options = ("--baseline", str(file), "--write-baseline")
    ended = start(folder, hosts=["m1", "m2"], per_node=1, options=options)
    return folder, file, ended


def test_two_well_nodes_write_a_baseline(baseline):
    folder, file, ended = baseline
    assert ended == [0, 0]
    (entry,) = json.loads(file.read_text())
    assert (entry["num_ranks"], entry["num_ranks_in_node"], entry["within_node"]) == (2, 1, None)
    assert entry["over_all_nodes"] > 0
    reports = read(folder)
    assert [reports[f"rank-{rank}.json"]["host"] for rank in (0, 1)] == ["m1", "m2"]
    assert all(report["check"] == "done" for report in reports.values())
    status, said, sick = verdict(folder, ["m1", "m2"], 2)
    assert (status, sick) == (0, "") and "No problem found." in said


def test_four_ranks_far_below_the_baseline_name_the_slow_part(tmp_path):
    """Within the nodes all is as fast as can be asked for; between them it is not."""
    file = tmp_path / "baseline.json"
    shape = {"backend": "gloo", "num_bytes": 2**20, "num_ranks": 4, "num_ranks_in_node": 2}
    file.write_text(json.dumps([{**shape, "within_node": 1e-9, "over_all_nodes": 1e9}]))
    ended = start(tmp_path, hosts=["m1", "m2"], per_node=2, options=("--baseline", str(file)))
    assert set(ended) == {75}
    reports = read(tmp_path).values()
    assert all(report["measurements"]["within_node_gb_per_second"] > 0 for report in reports)
    status, said, sick = verdict(tmp_path, ["m1", "m2"], 4)
    assert (status, sick) == (75, "")
    assert "the network between nodes, no single node named" in said


def test_rank_that_never_starts_is_not_waited_for_longer_than_asked(tmp_path):
    begin = time.monotonic()
    hosts = ["m1", "m2"]
    options = ("--timeout", "4")
    ended = start(tmp_path, hosts=hosts, per_node=2, ranks=[0, 1, 2], options=options)
    assert set(ended) == {75}
    assert time.monotonic() - begin < 4 + 25
    reports = read(tmp_path)
    assert sorted(reports) == ["rank-0.json", "rank-1.json", "rank-2.json"]
    for report in reports.values():
        assert report["check"] == "rendezvous"
        assert report["problems"][0].startswith("over all nodes: rendezvous: ")
    assert any(report["absent_ranks"] == [3] for report in reports.values())
    status, said, sick = verdict(tmp_path, hosts, 4)
    assert (status, sick) == (75, "m2\n")
    assert "m2: 1 of 2 ranks wrote no file" in said


def test_rank_without_its_gpu_stops_the_others_at_once_and_is_named(tmp_path):
    begin = time.monotonic()
    by_rank = {1: ("--backend", "nccl")}
    ended = start(tmp_path, hosts=["m1", "m2"], per_node=1, by_rank=by_rank)
    assert set(ended) == {75}
    assert time.monotonic() - begin < 60
    reports = read(tmp_path)
    assert any("none for local rank 0" in p for p in reports["rank-1.json"]["problems"])
    (problem,) = reports["rank-0.json"]["problems"]
    assert problem.startswith("over all nodes: rendezvous: ") and "cannot take part" in problem
    status, _, sick = verdict(tmp_path, ["m1", "m2"], 2)
    assert (status, sick) == (75, "m2\n")
