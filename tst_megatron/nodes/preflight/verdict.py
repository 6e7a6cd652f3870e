"""Decide which nodes are sick, from the reports of all ranks of a preflight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tst_megatron.nodes.preflight.report import (
    CHECKS,
    OVER_ALL_NODES,
    WITH_OTHER_NODES,
    RankReport,
    numbers,
)

Nodes = Mapping[str, Sequence[RankReport]]


@dataclass(kw_only=True, slots=True)
class NodeVerdict:
    """Verdict on one node."""

    host: str
    num_ranks: int
    """Ranks that wrote a file."""
    within_node: float | None = None
    over_all_nodes: float | None = None
    """Bus bandwidths of its slowest rank, GB/s."""
    problems: list[str] = field(default_factory=list)
    """Problems of this node, the worst first; one makes the node sick."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """Verdict on all nodes of a job."""

    nodes: list[NodeVerdict]
    problems: list[str] = field(default_factory=list)
    """Problems that belong to no single node."""
    notes: list[str] = field(default_factory=list)

    @property
    def sick_nodes(self) -> list[str]:
        """Hosts to be left out."""
        return [node.host for node in self.nodes if node.problems]

    @property
    def is_well(self) -> bool:
        """Tell whether a run can start."""
        return not self.problems and not self.sick_nodes


def judge(
    reports: Mapping[int, RankReport],
    *,
    hosts: Sequence[str],
    num_ranks: int,
    notes: Sequence[str] = (),
) -> Verdict:
    """Name the sick nodes.

    Args:
        reports: by rank; those of ranks that wrote nothing are missing.
        hosts: of the job.
        num_ranks: of the job, as many on each host.
        notes: on the reports, passed on.

    Raises:
        ValueError: ranks and hosts do not fit each other or the reports.
    """
    nodes = _by_host(reports, hosts, num_ranks)
    own = missing_problems(nodes, num_ranks)
    for find in (stuck_problems, _own_problems):
        _add(own, find(nodes))
    by_version, problems = version_problems(nodes)
    _add(own, by_version)
    by_silence, silent = silence_problems(nodes)
    _add(own, by_silence)
    _add(own, absence_problems(nodes, {host for host in own if own[host]}))
    problems += silent + take_out_common(own, len(hosts))
    between = _distinct(
        problem
        for report in reports.values()
        for problem in report.problems
        if _is_between(problem)
    )
    noted = [*notes, *_distinct(note for report in reports.values() for note in report.notes)]
    if between and len(hosts) == 1:
        own.setdefault(hosts[0], []).extend(between)
    elif between and any(own.values()):
        noted += [f"{problem} (perhaps because of the sick nodes)" for problem in between]
    elif between:
        problems.append(f"the network between nodes, no single node named: {'; '.join(between)}")
    verdicts = [_node(host, nodes[host], _distinct(own.get(host, []))) for host in hosts]
    return Verdict(nodes=verdicts, problems=problems, notes=noted)


def _by_host(
    reports: Mapping[int, RankReport], hosts: Sequence[str], num_ranks: int
) -> dict[str, list[RankReport]]:
    if not hosts or len(set(hosts)) != len(hosts) or num_ranks % len(hosts):
        raise ValueError(
            f"--hosts {','.join(hosts)} and --ranks {num_ranks}: the hosts of a job are different "
            "ones, and each has as many ranks"
        )
    if extra := sorted(rank for rank in reports if rank >= num_ranks):
        raise ValueError(
            f"--ranks {num_ranks}: there are files of ranks {numbers(extra)}. Use a new folder for "
            "each attempt"
        )
    # Slurm may know nodes by a shorter name than they do.
    names = {host.partition(".")[0]: host for host in hosts} | {host: host for host in hosts}
    nodes: dict[str, list[RankReport]] = {host: [] for host in hosts}
    for rank in sorted(reports):
        seen = reports[rank].host
        host = names.get(seen) or names.get(seen.partition(".")[0])
        if host is None:
            raise ValueError(
                f"--hosts {','.join(hosts)}: rank {rank} ran on {seen}, which is none of them. "
                "Name all nodes of the job, and use a new folder for each attempt"
            )
        nodes[host].append(reports[rank])
    return nodes


def missing_problems(nodes: Nodes, num_ranks: int) -> dict[str, list[str]]:
    """Nodes on which fewer ranks than should wrote a file: they did not start, or cannot write."""
    present = sum(len(reports) for reports in nodes.values())
    wanted = num_ranks // len(nodes)
    if present == num_ranks:
        # Unevenly placed, perhaps, but all there.
        return {}
    return {
        host: [f"{wanted - len(reports)} of {wanted} ranks wrote no file"]
        for host, reports in nodes.items()
        if len(reports) < wanted
    }


def stuck_problems(nodes: Nodes) -> dict[str, list[str]]:
    """Nodes with ranks that ended or hang, without a word, where they need no other node."""
    found: dict[str, list[str]] = {}
    for host, reports in nodes.items():
        for check in CHECKS[:-1]:
            ranks = [r.rank for r in reports if r.check == check and not r.problems]
            if ranks and check not in WITH_OTHER_NODES:
                problem = f"rank {numbers(ranks)} ended or hangs in: {check}"
                found.setdefault(host, []).append(problem)
    return found


def _own_problems(nodes: Nodes) -> dict[str, list[str]]:
    return {
        host: [problem for r in reports for problem in r.problems if not _is_between(problem)]
        for host, reports in nodes.items()
    }


def version_problems(nodes: Nodes) -> tuple[dict[str, list[str]], list[str]]:
    """Nodes whose software is not that of the majority, and differences that have no majority."""
    found: dict[str, list[str]] = {}
    undecided = []
    for name in sorted({name for rs in nodes.values() for r in rs for name in r.versions}):
        here = {
            host: "/".join(sorted({r.versions[name] for r in reports if name in r.versions}))
            for host, reports in nodes.items()
        }
        counts = Counter(version for version in here.values() if version)
        (usual, most), *others = counts.most_common()
        if not others:
            continue
        if most * 2 <= sum(counts.values()):
            by_host = ", ".join(
                f"{host} has {version}" for host, version in here.items() if version
            )
            undecided.append(f"{name} differs between nodes, without a majority: {by_host}")
            continue
        for host, version in here.items():
            if version not in ("", usual):
                problem = f"{name} is {version}, on most nodes {usual}"
                found.setdefault(host, []).append(problem)
    return found, undecided


def silence_problems(nodes: Nodes) -> tuple[dict[str, list[str]], list[str]]:
    """Nodes with ranks that ended without a word while the ranks of others went on to the end.

    Where more than half of the nodes are such, something ended the job from outside.
    """
    silent: dict[str, list[int]] = {}
    num_others = 0
    for host, reports in nodes.items():
        for report in reports:
            has_spoken = any(_is_between(problem) for problem in report.problems)
            if report.check in WITH_OTHER_NODES and not has_spoken:
                silent.setdefault(host, []).append(report.rank)
            elif report.check in (*WITH_OTHER_NODES, CHECKS[-1]):
                num_others += 1
    words = "ended or hangs while waiting for other nodes, without a word"
    if not silent:
        return {}, []
    if num_others and len(silent) * 2 <= len(nodes):
        return {host: [f"rank {numbers(ranks)} {words}"] for host, ranks in silent.items()}, []
    ranks = sorted(rank for some in silent.values() for rank in some)
    return {}, [f"rank {numbers(ranks)} {words}"]


def absence_problems(nodes: Nodes, known: set[str]) -> dict[str, list[str]]:
    """Nodes whose ranks wrote a file and never met the others, unless already known to be sick.

    Where it is half of the nodes or more, it may be the others that cannot be reached.
    """
    absent = {rank for reports in nodes.values() for r in reports for rank in r.absent_ranks}
    found = {
        host: [f"rank {numbers(ranks)} never met the others"]
        for host, reports in nodes.items()
        if (ranks := [r.rank for r in reports if r.rank in absent]) and host not in known
    }
    return found if len(found) * 2 < len(nodes) else {}


def take_out_common(own: dict[str, list[str]], num_nodes: int) -> list[str]:
    """Take problems that every node has out of the nodes' own, and return them.

    A full shared folder or a wrong baseline is no reason to leave out all nodes.
    """
    if num_nodes == 1:
        return []
    kinds = Counter(kind for problems in own.values() for kind in {_kind(p) for p in problems})
    common = {kind for kind, number in kinds.items() if number == num_nodes}
    taken: dict[str, str] = {}
    for problems in own.values():
        for problem in problems:
            if _kind(problem) in common:
                taken.setdefault(_kind(problem), f"every node: {problem}")
        problems[:] = [problem for problem in problems if _kind(problem) not in common]
    return list(taken.values())


def _kind(problem: str) -> str:
    """A problem without its numbers."""
    return re.sub(r"[\d.,]+", "", problem)


def _is_between(problem: str) -> bool:
    return problem.startswith(OVER_ALL_NODES)


def _add(to: dict[str, list[str]], more: Mapping[str, Sequence[str]]) -> None:
    for host, problems in more.items():
        to.setdefault(host, []).extend(problems)


def _distinct(problems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(problems))


def _node(host: str, reports: Sequence[RankReport], problems: list[str]) -> NodeVerdict:
    def slowest(name: str) -> float | None:
        values = (report.measurements.get(name) for report in reports)
        return min((value for value in values if value is not None), default=None)

    return NodeVerdict(
        host=host,
        num_ranks=len(reports),
        within_node=slowest("within_node_gb_per_second"),
        over_all_nodes=slowest("over_all_nodes_gb_per_second"),
        problems=problems,
    )
