"""Run one rank of a preflight: check the node, meet the others, add up numbers, report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.nodes.preflight.baseline import (
    Baseline,
    add_baseline,
    bandwidth_problems,
    read_baselines,
)
from tst_megatron.nodes.preflight.report import (
    OVER_ALL_NODES,
    GaveUp,
    Progress,
    RankReport,
    attempt,
    numbers,
)
from tst_megatron.system.exit_status import FINISHED, STOPPED
from tst_megatron.system.machine import node, nvidia_smi

if TYPE_CHECKING:
    from tst_megatron.nodes.preflight.collectives import AllReduce, Meeting


NUM_BYTES = {"nccl": 2**30, "gloo": 2**26}
"""Enough for NVLink's full bandwidth; a CPU takes seconds for a sixteenth of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Options of a preflight."""

    backend: str
    num_bytes: int | None
    """Size of each all-reduce; None is ``NUM_BYTES`` of the backend."""
    baseline: Path | None
    write_baseline: bool
    min_fraction: float
    min_free_gib: float
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Position of a rank in its job."""

    rank: int
    num_ranks: int
    local_rank: int


def place_of_environment(rank: int | None) -> Place:
    """This process's place in the job, after ``rank_of_environment``.

    Raises:
        ValueError: it is in none.
    """
    names = ("WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if rank is None or missing:
        raise ValueError(
            f"{' and '.join(missing) or 'RANK'}: not set, and every process of a preflight is one "
            "rank. Start it by srun with one task for each GPU"
        )
    num_ranks, local_rank = (int(os.environ[name]) for name in names)
    return Place(rank=rank, num_ranks=num_ranks, local_rank=local_rank)


def preflight(folder: Path, place: Place, wanted: Wanted) -> int:
    """Go through all checks as one rank, and return the exit status.

    Raises:
        ValueError: there is a baseline file, and it is none.
        OSError: it cannot be read, or the folder cannot be written to.
    """
    is_judged = wanted.baseline is not None and not wanted.write_baseline
    baselines = read_baselines(wanted.baseline) if wanted.baseline and is_judged else []
    folder.mkdir(parents=True, exist_ok=True)
    report = RankReport(rank=place.rank, host=node.host_name(), attempt=attempt())
    report.versions = node.versions()
    progress = Progress(folder, report, timeout_seconds=wanted.timeout_seconds)
    try:
        with progress.check("start"):
            # Importing torch takes seconds, and minutes from a file system that is ill.
            from tst_megatron.megatron.cpu import device

            backend = device.backend(wanted.backend)
            report.versions |= device.library_versions(backend)
            unfit = device.lacks_gpu(place.local_rank) if backend == "nccl" else None
            report.problems += [unfit] if unfit else []
        if place.local_rank == 0:
            _look_at_node(progress, folder, wanted, has_gpus=backend == "nccl")
        meeting = _meet(progress, place, wanted, backend, unfit)
        _add_up(progress, place, wanted, meeting, backend, baselines)
        report.check = "done"
    except GaveUp:
        progress.end_at_once()
    progress.write()
    return STOPPED if report.problems else FINISHED


def _look_at_node(progress: Progress, folder: Path, wanted: Wanted, *, has_gpus: bool) -> None:
    """Check the node, as one rank of each node does before any rank works on a GPU."""
    report = progress.report
    if has_gpus:
        with progress.check("nvidia-smi"):
            gpus = nvidia_smi.ask("gpu", nvidia_smi.FIELDS)
            report.problems += nvidia_smi.gpu_problems(gpus)
            report.measurements["num_gpus"] = len(gpus.rows)
            if gpus.problem is None:
                apps = nvidia_smi.ask("compute-apps", nvidia_smi.PROCESS_FIELDS)
                report.problems += nvidia_smi.process_problems(apps)
    with progress.check("memory and disks"):
        for name, path, needed in (
            ("shared memory", node.SHARED_MEMORY, node.MIN_SHARED_MEMORY_GIB),
            ("run folder", folder, wanted.min_free_gib),
            ("temporary folder", Path(tempfile.gettempdir()), wanted.min_free_gib),
        ):
            try:
                free = node.free_gib(path)
                report.measurements[f"{name}, free GiB"] = free
                report.problems += node.space_problems(f"{name} {path}", free, needed)
                if path != node.SHARED_MEMORY:
                    seconds = node.probe_seconds(path)
                    report.measurements[f"{name}, seconds to write 1 MiB"] = seconds
            except OSError as error:
                report.problems.append(f"{name} {path}: {error}")


def _meet(
    progress: Progress, place: Place, wanted: Wanted, backend: str, unfit: str | None
) -> Meeting:
    """Wait for all ranks, and compare clocks.

    Raises:
        GaveUp: not all ranks came, or not all can take part.
    """
    # It imports torch at its top, which only the first check may do: it has the time limit.
    from tst_megatron.nodes.preflight import collectives

    report = progress.report
    with progress.check("rendezvous"):
        try:
            meeting = collectives.meet(
                place.rank,
                place.num_ranks,
                host=report.host,
                unfit=unfit,
                timeout_seconds=wanted.timeout_seconds,
            )
        except collectives.Absent as error:
            report.absent_ranks = error.ranks
            raise
        report.problems += node.clock_problems(meeting.times, place.rank)
        report.measurements["clock_skew_seconds"] = meeting.times[place.rank] - meeting.times[0]
        num_here = meeting.hosts.count(report.host)
        num_gpus = report.measurements.get("num_gpus", num_here)
        report.problems += nvidia_smi.count_problems(num_gpus, num_here)
        if meeting.unfit:
            ranks = sorted(meeting.unfit)
            raise RuntimeError(
                f"ranks {numbers(ranks)} cannot take part: {meeting.unfit[ranks[0]]}"
            )
        collectives.start(
            meeting,
            place.rank,
            place.num_ranks,
            backend=backend,
            timeout_seconds=wanted.timeout_seconds,
        )
    return meeting


def _add_up(
    progress: Progress,
    place: Place,
    wanted: Wanted,
    meeting: Meeting,
    backend: str,
    baselines: list[Baseline],
) -> None:
    """All-reduce within the node and over all nodes, and compare with the baseline."""
    # Both import torch at their top, which only the first check may do: it has the time limit.
    from tst_megatron.megatron.cpu import device
    from tst_megatron.nodes.preflight import collectives  # As above.

    report = progress.report
    num_bytes = wanted.num_bytes or NUM_BYTES[backend]
    here = [rank for rank, host in enumerate(meeting.hosts) if host == report.host]
    with progress.check("within the node"):
        where: dict[str, Any] = {
            "num_bytes": num_bytes,
            "device": device.of_rank(backend, place.local_rank),
        }
        group = collectives.group_of(here, wanted.timeout_seconds)
        within = collectives.all_reduce(group, **where)
        report.measurements["within_node_gb_per_second"] = within.gb_per_second
    with progress.check("over all nodes"):
        over_all = collectives.all_reduce(None, **where)
        report.measurements["over_all_nodes_gb_per_second"] = over_all.gb_per_second
        collectives.end()
    measured = Baseline(
        backend=backend,
        num_bytes=num_bytes,
        num_ranks=place.num_ranks,
        num_ranks_in_node=len(here),
        within_node=within.gb_per_second,
        over_all_nodes=over_all.gb_per_second,
    )
    known = next((each for each in baselines if each.is_like(measured)), None)
    _judge("within the node: ", within, report, known.within_node if known else None, wanted)
    _judge(OVER_ALL_NODES, over_all, report, known.over_all_nodes if known else None, wanted)
    if wanted.write_baseline and wanted.baseline and place.rank == 0:
        if report.problems:
            report.notes.append("baseline: not written, for there are problems")
        else:
            add_baseline(wanted.baseline, measured)
    elif wanted.baseline and known is None and place.rank == 0:
        report.notes.append(
            f"baseline: {wanted.baseline} has none for {place.num_ranks} ranks, {len(here)} in a "
            f"node, with {backend} and {num_bytes >> 20} MiB: no bandwidth was judged"
        )


def _judge(
    scope: str, seen: AllReduce, report: RankReport, baseline: float | None, wanted: Wanted
) -> None:
    problems = bandwidth_problems(seen.gb_per_second, baseline, wanted.min_fraction)
    if seen.num_wrong:
        problems.insert(0, f"all-reduce gave {seen.num_wrong} wrong sums")
    report.problems += [f"{scope}{problem}" for problem in problems]
