import io
import json
from dataclasses import asdict

import pytest
from rich.console import Console

from tst_megatron.nodes.preflight.report import RankReport, attempt, read_reports
from tst_megatron.nodes.preflight.show import show, write_sick_nodes
from tst_megatron.nodes.preflight.verdict import judge

HOSTS = ("m1", "m2", "m3")
VERSIONS = {"python": "3.12.8", "torch": "2.11.0"}


def all_well(hosts=HOSTS, per_node=2):
    return {
        rank: RankReport(
            rank=rank,
            host=hosts[rank // per_node],
            attempt="",
            check="done",
            versions=dict(VERSIONS),
            measurements={"within_node_gb_per_second": 800.0 + rank},
        )
        for rank in range(len(hosts) * per_node)
    }


def verdict_of(reports, hosts=HOSTS, per_node=2):
    return judge(reports, hosts=hosts, num_ranks=len(hosts) * per_node)


def waited(reports, ranks, why="over all nodes: rendezvous: ranks 2 did not come", check=None):
    for rank in ranks:
        reports[rank].check = check or "rendezvous"
        reports[rank].problems.append(why)


def test_all_well_names_nobody():
    verdict = verdict_of(all_well())
    assert verdict.is_well and verdict.sick_nodes == []
    assert [node.within_node for node in verdict.nodes] == [800, 802, 804]


def test_own_problem_makes_its_node_sick():
    reports = all_well()
    reports[3].problems.append("GPU 1: 2 uncorrected ECC errors")
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == ["m2"] and not verdict.is_well


def test_missing_file_names_its_node_and_not_those_that_waited():
    reports = all_well()
    del reports[2]
    waited(reports, reports)
    for report in reports.values():
        report.absent_ranks = [2]
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == ["m2"]
    assert verdict.nodes[1].problems == ["1 of 2 ranks wrote no file"]
    assert any("perhaps because of the sick nodes" in note for note in verdict.notes)


@pytest.mark.parametrize("check", ["start", "nvidia-smi", "memory and disks", "within the node"])
def test_rank_that_is_stuck_by_itself_names_its_node(check):
    reports = all_well()
    reports[4].check = check
    waited(reports, [0, 1, 2, 3, 5])
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == ["m3"]
    assert verdict.nodes[2].problems == [f"rank 4 ended or hangs in: {check}"]


def test_rank_that_died_in_a_collective_is_the_silent_one():
    reports = all_well()
    reports[4].check = "over all nodes"
    waited(reports, [0, 1, 2, 3, 5], "over all nodes: connection closed", "over all nodes")
    assert verdict_of(reports).sick_nodes == ["m3"]


def test_job_that_was_ended_from_outside_names_nobody():
    reports = all_well()
    for report in reports.values():
        report.check = "over all nodes"
    waited(reports, [0], "over all nodes: connection closed", "over all nodes")
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == [] and not verdict.is_well


def test_rank_that_could_not_reach_the_others_names_its_node():
    reports = all_well()
    waited(reports, [0, 1, 4, 5])
    waited(reports, [2, 3], "over all nodes: rendezvous: no route to host")
    reports[0].absent_ranks = [2, 3]
    assert verdict_of(reports).sick_nodes == ["m2"]
    # Of two nodes it may be either.
    two = all_well(HOSTS[:2])
    waited(two, two)
    two[0].absent_ranks = [2, 3]
    verdict = verdict_of(two, HOSTS[:2])
    assert verdict.sick_nodes == [] and not verdict.is_well


def test_problem_only_between_nodes_names_nobody():
    reports = all_well()
    waited(reports, reports, "over all nodes: all-reduce at 90.00 GB/s", "done")
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == []
    (problem,) = verdict.problems
    assert problem.startswith("the network between nodes, no single node named: ")
    # With one node there is no network between.
    one = all_well(("m1",))
    waited(one, one, "over all nodes: all-reduce at 90.00 GB/s", "done")
    assert verdict_of(one, ("m1",)).sick_nodes == ["m1"]


def test_versions_that_differ_from_the_majority_name_the_node():
    reports = all_well()
    reports[5].versions["torch"] = "2.10.0"
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == ["m3"]
    assert verdict.nodes[2].problems == ["torch is 2.10.0/2.11.0, on most nodes 2.11.0"]


def test_versions_without_a_majority_name_nobody():
    reports = all_well(HOSTS[:2])
    for rank in (2, 3):
        reports[rank].versions["torch"] = "2.10.0"
    verdict = verdict_of(reports, HOSTS[:2])
    assert verdict.sick_nodes == []
    assert "m1 has 2.11.0, m2 has 2.10.0" in verdict.problems[0]


def test_what_every_node_has_is_the_fault_of_none():
    reports = all_well()
    for rank in (0, 2, 4):
        reports[rank].problems.append(f"run folder /x: 0.{rank} GiB free, 1 are needed")
    verdict = verdict_of(reports)
    assert verdict.sick_nodes == [] and verdict.problems[0].startswith("every node: run folder")
    assert verdict_of({}).sick_nodes == [] and not verdict_of({}).is_well


def test_hosts_that_do_not_fit_the_files_are_refused():
    with pytest.raises(ValueError, match="rank 4 ran on m3, which is none of them"):
        judge(all_well(), hosts=["m1", "m2"], num_ranks=6)
    with pytest.raises(ValueError, match="each has as many ranks"):
        judge({}, hosts=["m1", "m2"], num_ranks=3)
    with pytest.raises(ValueError, match="files of ranks 4, 5"):
        judge(all_well(), hosts=["m1", "m2"], num_ranks=4)


def test_long_and_short_names_are_one_node():
    reports = all_well(("m1.cluster", "m2.cluster", "m3.cluster"))
    assert verdict_of(reports).is_well


def test_files_of_another_attempt_and_broken_ones_count_as_missing(tmp_path):
    for rank, report in all_well().items():
        report.attempt = "7.1" if rank else "7.0"
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(asdict(report)))
    (tmp_path / "rank-1.json").write_text('{"rank": ')
    current = attempt({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    reports, notes = read_reports(tmp_path, current)
    assert sorted(reports) == [2, 3, 4, 5]
    assert "of another attempt, 7.0" in notes[0] and "cannot be read" in notes[1]
    assert attempt({}) == "" and attempt({"SLURM_JOB_ID": "7"}) == "7.0"


def test_table_and_file_name_the_sick_node(tmp_path):
    reports = all_well()
    reports[3].problems.append("GPU 1: fabric is [Unknown Error]")
    verdict = verdict_of(reports)
    write_sick_nodes(tmp_path, verdict)
    assert (tmp_path / "sick-nodes").read_text() == "m2\n"
    shown = io.StringIO()
    show(verdict, Console(file=shown, width=120))
    assert "m2: GPU 1: fabric is [Unknown Error]" in shown.getvalue()
    assert shown.getvalue().count("[Unknown Error]") == 2
