"""Find what keeps machines from training: ``doctor``, ``preflight`` and ``preflight-verdict``."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.shared import WIDTH_OF_A_FILE
from tst_megatron.recipe.profiles import PROFILES
from tst_megatron.system.exit_status import FINISHED, STOPPED
from tst_megatron.system.machine.node import MIN_FREE_GIB

UNFIT = 1


def doctor(
    profile: Annotated[
        str | None,
        typer.Option(
            help="The recipe's profile; default: bf16 on a machine with a GPU, else cpu.",
            metavar="|".join(PROFILES),
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Also look at the disk of this run folder.")
    ] = None,
    with_imports: Annotated[
        bool,
        typer.Option("--imports", help="Also import all that training does: half a minute more."),
    ] = False,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Name what this machine lacks for training, each with its fix; status 1 if it cannot work."""
    if profile is not None and profile not in PROFILES:
        raise ValueError(f"--profile {profile} is none of {', '.join(PROFILES)}")
    start = time.perf_counter()
    try:
        import packaging  # noqa: F401 - what the doctor itself stands on
    except ImportError as error:
        fix = f"uv pip install --python {sys.executable} packaging"
        typer.echo(f"packaging: {error}. Fix: {fix}", err=True)
        raise typer.Exit(UNFIT) from None
    from tst_megatron.nodes.doctor.diagnose import Diagnosis, findings_of
    from tst_megatron.nodes.doctor.gather import gather
    from tst_megatron.nodes.doctor.gpus import default_profile
    from tst_megatron.nodes.doctor.show import as_json, show
    from tst_megatron.system.machine.node import host_name

    facts = gather(folder=folder, with_imports=with_imports)
    meant = profile or default_profile(facts)
    diagnosis = Diagnosis(
        host=host_name(),
        profile=meant,
        is_default_profile=profile is None,
        findings=findings_of(facts, meant),
        seconds=time.perf_counter() - start,
    )
    if is_json:
        typer.echo(as_json(diagnosis))
    else:
        console = Console()
        show(diagnosis, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))
    raise typer.Exit(0 if diagnosis.can_train else UNFIT)


class Backend(StrEnum):
    """The library that carries the collectives."""

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
    from tst_megatron.training.rank import rank_of_environment

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

    names = [name.strip() for name in hosts.split(",") if name.strip()]
    reports, notes = read_reports(folder, attempt())
    verdict = judge(reports, hosts=names, num_ranks=ranks, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    write_sick_nodes(folder, verdict)
    show(verdict, Console())
    raise typer.Exit(FINISHED if verdict.is_well else STOPPED)
