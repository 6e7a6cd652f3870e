import json
import time
from pathlib import Path

import pytest

from tst_megatron.nodes.preflight.baseline import (
    Baseline,
    add_baseline,
    bandwidth_problems,
    read_baselines,
)
from tst_megatron.nodes.preflight.rank import place_of_environment
from tst_megatron.nodes.preflight.report import GaveUp, Progress, RankReport
from tst_megatron.system.machine import node


def progress_in(folder, **keywords):
    report = RankReport(rank=3, host="m1", attempt="")
    return Progress(folder, report, timeout_seconds=0.1, **keywords)


def written(folder):
    return json.loads((folder / "rank-3.json").read_text())


def test_check_is_on_disk_before_it_begins(tmp_path):
    with progress_in(tmp_path).check("within the node"):
        assert written(tmp_path)["check"] == "within the node"


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("within the node", "within the node: OSError: first"),
        ("over all nodes", "over all nodes: OSError: first"),
        ("rendezvous", "over all nodes: rendezvous: OSError: first"),
    ],
)
def test_failure_is_a_problem_of_one_line(tmp_path, check, problem):
    with pytest.raises(GaveUp), progress_in(tmp_path).check(check):
        raise OSError("first\nsecond")
    assert written(tmp_path)["problems"] == [problem]


def test_check_that_hangs_ends_the_process_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr("tst_megatron.nodes.preflight.report.SECONDS_OF_GRACE", 0.1)
    ended = []
    with progress_in(tmp_path, end=ended.append).check("over all nodes"):
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended == [75]
    assert written(tmp_path)["problems"] == ["over all nodes: hung for 0.2 s"]


def test_clock_is_judged_by_the_majority_and_a_tie_by_rank_0():
    now = 1.7e9
    assert [bool(node.clock_problems([now + 90, now, now + 1], rank)) for rank in range(3)] == [
        *(True, False, False)
    ]
    assert "clock: 90.0 s ahead of" in node.clock_problems([now + 90, now, now], 0)[0]
    assert [bool(node.clock_problems([now, now + 90], rank)) for rank in range(2)] == [False, True]
    assert node.clock_problems([now, now + 4], 1) == []


def test_space_and_probe(tmp_path, monkeypatch):
    assert node.space_problems("run folder", 2.0, 1.0) == []
    assert node.space_problems("run folder", 0.25, 1) == ["run folder: 0.2 GiB free, 1 are needed"]
    assert node.probe_seconds(tmp_path) > 0
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"else")
    with pytest.raises(OSError, match="another content"):
        node.probe_seconds(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_baselines_are_kept_by_shape_of_job(tmp_path):
    file = tmp_path / "baseline.json"

    def baseline(num_ranks, within):
        return Baseline(
            backend="nccl",
            num_bytes=8,
            num_ranks=num_ranks,
            num_ranks_in_node=8,
            within_node=within,
            over_all_nodes=1.0,
        )

    for each in (baseline(8, 1.0), baseline(16, 2.0), baseline(8, 3.0)):
        add_baseline(file, each)
    assert read_baselines(file) == [baseline(16, 2.0), baseline(8, 3.0)]
    file.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="no file of baselines"):
        read_baselines(file)


def test_bandwidth_below_the_fraction_is_a_problem():
    assert bandwidth_problems(80.0, 100.0, 0.8) == []
    assert bandwidth_problems(None, 100.0, 0.8) == bandwidth_problems(1.0, None, 0.8) == []
    (problem,) = bandwidth_problems(79.0, 100.0, 0.8)
    assert "79.00 GB/s, 0.79 of the baseline 100.00; 0.8 is needed" in problem


def test_process_outside_a_job_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE: not set"):
        place_of_environment(0)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="RANK: not set"):
        place_of_environment(None)


def test_wrong_sums_are_counted(monkeypatch):
    import torch

    from tst_megatron.nodes.preflight import collectives

    def add(buffer, group):
        # What three ranks would give: this one is the second.
        buffer.mul_(3)
        buffer[5] += 1

    monkeypatch.setattr(collectives.dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(collectives.dist, "get_rank", lambda group: 1)
    monkeypatch.setattr(collectives.dist, "all_reduce", add)
    seen = collectives.all_reduce(None, num_bytes=4096 * 4, device=torch.device("cpu"))
    assert seen.num_wrong == 1 + collectives.NUM_ROUNDS
    assert seen.gb_per_second > 0
