"""``tst-megatron preflight`` and ``preflight-verdict``: find sick nodes before a run starts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import rank_of_environment
from tst_megatron.system.machine.node import MIN_FREE_GIB


class Backend(StrEnum):
    """What carries the collectives."""

    AUTO = "auto"
    NCCL = "nccl"
    GLOO = "gloo"


def preflight(
    folder: Annotated[
        Path,
        typer.Argument(help="Where each rank writes rank-N.json; shared, new for each attempt."),
    ],
    backend: Annotated[
        Backend, typer.Option(help="Collectives; auto is NCCL where there is a GPU, else gloo.")
    ] = Backend.AUTO,
    mebibytes: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the all-reduces, MiB. Default: 1024, with gloo 64."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Bandwidths of this cluster when it was well, a JSON file.")
    ] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="Write them to --baseline instead.")
    ] = False,
    min_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the baseline's bandwidth that is needed.")
    ] = 0.8,
    min_free_gib: Annotated[
        float,
        typer.Option(min=0, help="Free space needed in FOLDER and the temporary folder, GiB."),
    ] = MIN_FREE_GIB,
    timeout: Annotated[
        float, typer.Option(min=1, help="How long a rank waits for the others, seconds.")
    ] = 120.0,
) -> None:
    """Look for sick nodes, every process as one rank; status 75 if it found a problem.

    Start it by srun with one task for each GPU, and without --kill-on-bad-exit, which would end
    ranks that have not yet written what they saw.
    """
    from tst_megatron.nodes.preflight.rank import Wanted, place_of_environment
    from tst_megatron.nodes.preflight.rank import preflight as run_preflight

    if write_baseline and baseline is None:
        raise ValueError("--write-baseline: no file to write to. Name one with --baseline")
    place = place_of_environment(rank_of_environment())
    wanted = Wanted(
        backend=backend.value,
        num_bytes=mebibytes * 2**20 if mebibytes else None,
        baseline=baseline,
        write_baseline=write_baseline,
        min_fraction=min_fraction,
        min_free_gib=min_free_gib,
        timeout_seconds=timeout,
    )
    raise typer.Exit(run_preflight(folder, place, wanted))


def preflight_verdict(
    folder: Annotated[Path, typer.Argument(help="The folder that preflight wrote to.")],
    hosts: Annotated[str, typer.Option(help="Nodes of the job, separated by commas.")],
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of the job, evenly on its nodes.")],
) -> None:
    """Name the sick nodes and why, and write FOLDER/sick-nodes; status 75 if all is not well."""
    from tst_megatron.nodes.preflight.report import attempt, read_reports
    from tst_megatron.nodes.preflight.show import show, write_sick_nodes
    from tst_megatron.nodes.preflight.verdict import judge
    from tst_megatron.system.exit_status import FINISHED, STOPPED

    names = [name.strip() for name in hosts.split(",") if name.strip()]
    reports, notes = read_reports(folder, attempt())
    verdict = judge(reports, hosts=names, num_ranks=ranks, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    write_sick_nodes(folder, verdict)
    show(verdict, Console())
    raise typer.Exit(FINISHED if verdict.is_well else STOPPED)
