"""Run a job script without a Slurm: stand-ins for its commands, each a few lines of shell.

Enough for everything that a script refuses before anything starts, and for one start of a run. What
Slurm itself does with the scripts is for the tests with ``cluster``.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jobs import STUBS

COMMANDS = {
    # Of a job of many nodes the list is longer than what a pipe takes at once.
    "scontrol": """
case "$1 $2" in
  "show hostnames") echo m1; [[ ${MANY:-} != yes ]] || { sleep 0.1; seq -f node-%05g 1000; } ;;
  "show job") echo "JobId=7 JobState=RUNNING Reason=None Requeue=1 ExcNodeList=(null)" \
    "SubmitTime=2030-01-01T00:00:00" ;;
  requeue*) touch "$SLURM_SUBMIT_DIR/was-requeued" ;;
esac
""",
    "squeue": "",
    "scancel": "",
    "srun": """
printf '%q ' "$@" >>"$SLURM_SUBMIT_DIR/srun-lines"
echo >>"$SLURM_SUBMIT_DIR/srun-lines"
while [[ $1 == --* ]]; do shift; done
export SLURM_LOCALID=0 SLURM_PROCID=0 SLURM_STEP_ID=0 SLURMD_NODENAME=m1
exec "$@"
""",
}


@dataclass(frozen=True)
class Ended:
    """What a script left."""

    status: int
    output: str
    folder: Path

    @property
    def errors(self) -> list[str]:
        """Its sentences, without their times."""
        marked = [line.partition("error: ") for line in self.output.splitlines()]
        return [text for _, mark, text in marked if mark]

    @property
    def started(self) -> list[str]:
        """What srun was called with, a line each; empty where nothing was started."""
        path = self.folder / "srun-lines"
        return path.read_text().splitlines() if path.exists() else []


def run(folder: Path, script: str, *arguments: str, **variables: str) -> Ended:
    """Run a script as Slurm would, in a checkout; ``variables`` are those in front of sbatch."""
    commands = folder / "stand-ins"
    commands.mkdir(exist_ok=True)
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (commands / name).chmod(0o755)
    environment = {
        "PATH": f"{commands}:{STUBS}:{os.environ['PATH']}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "a-job",
        "SLURM_JOB_NODELIST": "m1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NTASKS": "1",
        "WATCH_SECONDS": "1",
        "PREFLIGHT": "no",
        **variables,
    }
    done = subprocess.run(
        ["bash", str(folder / "slurm" / script), *arguments],
        env={name: value for name, value in environment.items() if value != "unset"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(done.returncode, done.stdout, folder)
