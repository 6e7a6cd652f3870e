"""``tst-megatron doctor``: what of this machine and its software keeps a run from training."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tst_megatron.cli.status import WIDTH_OF_A_FILE
from tst_megatron.recipe.profiles import PROFILES

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
        findings=findings_of(facts, meant, is_asked=profile is not None),
        seconds=time.perf_counter() - start,
    )
    if is_json:
        typer.echo(as_json(diagnosis))
    else:
        console = Console()
        show(diagnosis, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))
    raise typer.Exit(0 if diagnosis.can_train else UNFIT)
