"""Submit the project's job scripts to the cluster of the tests, and read what they left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import SECONDS_OF_A_HANG, Cluster

STUBS = Path(__file__).parent / "stub"


@dataclass
class Jobs:
    """What a user does in one checkout."""

    cluster: Cluster
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def submit(self, script: str, *arguments: str, options: Sequence[str] = (), **more: str) -> str:
        """``sbatch``; ``more`` are variables in front of it. The number of the job."""
        # The nodes' names do not resolve.
        variables = {"TST_MASTER_ADDR": "127.0.0.1", **self.variables, **more}
        command = ["sbatch", "--parsable", *options, f"slurm/{script}", *arguments]
        environment = {**self.cluster.environment, **variables}
        if "PATH_IN_FRONT" in variables:
            environment["PATH"] = f"{variables['PATH_IN_FRONT']}:{environment['PATH']}"
        return self.cluster.run(*command, cwd=self.folder, env=environment).strip()

    def log(self, job: str) -> str:
        """What a job printed, over all its starts."""
        (path,) = self.folder.glob(f"*-{job}.log")
        return path.read_text()

    def ended(self, job: str, state: str, *, seconds: float = SECONDS_OF_A_HANG) -> str:
        """Wait for the end of a job, which must be in a state; what it printed."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.cluster.wait(job, state=ends, seconds=seconds, explain=lambda: self._logs(job))
        found = self.cluster.fact(job, "JobState")
        assert found == state, f"{found}\n{self._logs(job)}"
        return self._logs(job)

    def _logs(self, job: str) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob(f"*-{job}.log"))


def events(run: Path) -> list[tuple[str, str, int, str]]:
    """(event, job, checkpointed step, text) of a run, in order."""
    path = run / "slurm" / "events.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split("\t") for line in lines]
    return [(event, job, int(step), text) for _, job, event, step, text in rows]


def names(run: Path) -> list[str]:
    return [event for event, *_ in events(run)]


def ranks_of(job: str) -> dict[int, int]:
    """The processes that train in a job, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            raw = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = (Path("/proc") / str(parent) / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        variables = dict(line.split(b"=", 1) for line in raw if b"=" in line)
        is_training = b"train" in command and any(
            word.endswith(b"tst-megatron") for word in command
        )
        # Not a worker that a rank has forked.
        if (
            is_training
            and b"slurmstepd" in above
            and variables.get(b"SLURM_JOB_ID") == job.encode()
        ):
            found[int(variables[b"SLURM_PROCID"])] = int(folder.name)
    return found
