"""A real Slurm on this machine: one controller and several nodes, as processes of this user.

Nodes are ``slurmd`` processes with names and ports of their own (``NodeHostname``), so that a job
of several nodes is one of several nodes to Slurm. Each declares more cores than there are, and the
nodes of the partition ``gpu`` eight GPUs whose device files are empty. Everything lives in one
scratch folder; nothing of an installed Slurm's configuration is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tst_megatron.training.run.launch import free_port

PACKAGES = ("slurm-wlm", "munge", "libslurm-dev", "gcc", "shellcheck")
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "gcc", "shellcheck")

SPANK = "/usr/include/slurm/spank.h"

CPU_NODES = ("m1", "m2", "m3")
GPU_NODES = tuple(f"g{number}" for number in range(1, 9))
GPUS_PER_NODE = 8

SECONDS_TO_REQUEUE = 5
"""How long a requeued job waits: the life of a job's credential, 120 s where nothing is said."""
SECONDS_TO_MISS_A_NODE = 10

SECONDS_OF_A_HANG = 1200.0
"""How long a test waits for what must happen; a machine that is busy may be many times slower."""

_PR_SET_PDEATHSIG = 1

_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout={missed}
KillWait=20
# An ended job stays known for all tests of a session: by default Slurm forgets it after 300 s.
MinJobAge=3600
InactiveLimit=0
SlurmdParameters=config_overrides
GresTypes=gpu
PlugStackConfig={folder}/plugstack.conf
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=cpu Nodes={cpu_nodes} Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes={cpu_nodes} State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=gpu Nodes={gpu_nodes} State=UP
"""


def missing_programs() -> list[str]:
    """What a cluster needs and this machine has not, after an installation where that is allowed.

    On a machine of continuous integration, which says so by ``CI``, root installs the packages.
    """
    missing = _missing()
    if missing and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", *PACKAGES]):
            subprocess.run(
                ["apt-get", *command],
                check=False,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        missing = _missing()
    return missing


def _missing() -> list[str]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=_SBIN) is None]
    # Of libslurm-dev; a stand-in for pyxis is compiled with it.
    return missing if Path(SPANK).exists() else [*missing, SPANK]


class Cluster:
    """A running Slurm; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            # Nothing that Slurm told a job around these tests, and no settings for its commands.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SLURM", "SBATCH", "SRUN", "TST_"))
                and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            },
            "PATH": f"{Path(sys.executable).parent}:{_SBIN}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            self.run("scancel", "--user", getpass.getuser(), "--full", check=False)
            wait_until(lambda: not self.jobs(), seconds=30, what="the end of all jobs", fail=False)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("state", "devices"):
            (self.folder / name).mkdir()
        for number in range(GPUS_PER_NODE):
            (self.folder / "devices" / f"nvidia{number}").touch()
        self._compile_stub_of_pyxis()
        self._write_configuration()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = (
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")
        )
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files
        )
        wait_until((self.folder / "munge.socket").exists, what="munge")
        self._daemon("slurmctld", "-D")
        for node in (*CPU_NODES, *GPU_NODES):
            self.start_node(node)
        wait_until(self._all_idle, what="nodes that are idle")

    def _write_configuration(self) -> None:
        host = socket.gethostname()
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=16 "
            f"State=UNKNOWN{f' Gres=gpu:{GPUS_PER_NODE}' if name in GPU_NODES else ''}"
            for name in (*CPU_NODES, *GPU_NODES)
        ]
        text = _CONFIGURATION.format(
            host=host,
            user=getpass.getuser(),
            folder=self.folder,
            controller_port=free_port(),
            requeue=SECONDS_TO_REQUEUE,
            missed=SECONDS_TO_MISS_A_NODE,
            nodes="\n".join(nodes),
            cpu_nodes=",".join(CPU_NODES),
            gpu_nodes=",".join(GPU_NODES),
        )
        (self.folder / "slurm.conf").write_text(text)
        devices = f"{self.folder}/devices/nvidia[0-{GPUS_PER_NODE - 1}]"
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(GPU_NODES)} Name=gpu File={devices}\n"
        )
        (self.folder / "plugstack.conf").write_text(f"required {self.folder}/stub_of_pyxis.so\n")

    def _compile_stub_of_pyxis(self) -> None:
        source = Path(__file__).parent / "stub_of_pyxis.c"
        command = ["gcc", "-shared", "-fPIC", "-o", f"{self.folder}/stub_of_pyxis.so", str(source)]
        subprocess.run(command, check=True)

    def _daemon(self, *command: str) -> None:
        name = command[0] if command[0] != "slurmd" else command[-1]
        program = shutil.which(command[0], path=_SBIN)
        assert program is not None
        log = (self.folder / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            [program, *command[1:]],
            stdout=log,
            stderr=log,
            env=self.environment,
            preexec_fn=_end_with_parent,
        )

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self._daemon("slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """End a node as a power cut does: its daemon, and the jobs that ran on it, at once."""
        daemon = self._daemons[name]
        processes = _processes_of_node(name, self.environment["SLURM_CONF"])
        assert processes, f"nothing runs on {name}"
        daemon.kill()
        daemon.wait()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
        nodes = {line.split()[0] for line in states if line.endswith(" idle")}
        return nodes == {*CPU_NODES, *GPU_NODES}

    def run(
        self,
        *command: str,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(
            command,
            env=env or self.environment,
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%A", check=False).split()

    def fact(self, job: str, name: str) -> str:
        """One field of ``scontrol show job``."""
        words = self.run("scontrol", "show", "job", job).split()
        return next(w.partition("=")[2] for w in words if w.startswith(f"{name}="))

    def wait(
        self,
        job: str,
        *,
        state: Sequence[str],
        seconds: float = SECONDS_OF_A_HANG,
        explain: Callable[[], str] = str,
    ) -> None:
        """Wait until a job is in one of some states."""
        wait_until(
            lambda: self.fact(job, "JobState") in state,
            seconds=seconds,
            what=f"job {job} to be {' or '.join(state)}",
            explain=lambda: f"{self.run('scontrol', 'show', 'job', job)}\n{explain()}",
        )


def wait_until(
    condition: Callable[[], object],
    *,
    seconds: float = SECONDS_OF_A_HANG,
    what: str,
    fail: bool = True,
    explain: Callable[[], str] = str,
) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            assert not fail, f"waited {seconds:.0f} s for {what}. {explain()}"
            return
        time.sleep(0.2)


def _end_with_parent() -> None:
    """Have the kernel end this process when the tests end, however they do."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _processes_of_node(name: str, configuration: str) -> list[int]:
    """What jobs run on a node, and above it the daemons of their steps, which hold the connections.

    Those daemons do not say of which node they are; their tasks do.
    """
    tasks = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        # Of this cluster alone: another may have a node of that name.
        wanted = {f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={configuration}".encode()}
        if wanted <= set(variables):
            tasks.append(int(folder.name))
    above = {parent for task in tasks if "slurmstepd" in _command(parent := _parent(task))}
    return [*above, *tasks]


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""
