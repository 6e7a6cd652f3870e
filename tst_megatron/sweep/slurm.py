"""Write what submits a sweep to Slurm: an array of jobs for each level of its forest.

The runs of a level branch from those of the level above. ``slurm/sweep.sbatch`` trains one line of
a level's file in each task of the array. A level begins when every task of the one before has
ended, finished or not: a run that fails must not keep the others waiting for ever.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tst_megatron.sweep.keys import words_of
from tst_megatron.sweep.plan import BASE, RUNS, PlannedRun, SweepPlan
from tst_megatron.sweep.trunks import levels
from tst_megatron.system.files import write_beside

SUBMIT, LEVELS = "submit.sh", "slurm"

_SCRIPT = """\
#!/usr/bin/env bash
# Submit this sweep, from the project's folder:
#
#   bash {name} --nodes=1 --ntasks-per-node=8 --gpus-per-node=8
#
# Options are sbatch's, for every run. Each level of runs is an array, and waits for the end of the
# level before. A second call resumes what is not finished.
set -Eeuo pipefail
if [[ ! -r slurm/sweep.sbatch ]]; then
  echo "error: $PWD is not the project's folder: run this script from there" >&2
  exit 2
fi
folder={folder}
# What these jobs run is decided here, and not by the shell that submits.
export SWEEP_FOLDER=$folder/{runs}
wait=()
"""

_LEVEL = """\
job=$(sbatch --parsable --array=1-{number}{at_once} ${{wait[@]+"${{wait[@]}}"}} "$@" \\
  slurm/sweep.sbatch "$folder"/{base} "$folder"/{file})
echo "job $job: {what}"
wait=(--dependency="afterany:${{job%%;*}}")
"""


def write_submission(plan: SweepPlan, *, at_once: int | None) -> Path:
    """Write the script that submits a sweep, and the files of its levels.

    Args:
        plan: of the sweep, whose recipes are written.
        at_once: runs of a level that may train at the same time; None leaves it to Slurm.

    Returns:
        The script.
    """
    folder = plan.folder.resolve()
    (folder / LEVELS).mkdir(exist_ok=True)
    for left in (folder / LEVELS).glob("level-*.txt"):
        # Of a plan that had more levels.
        left.unlink()
    by_name = {run.name: run for run in plan.runs}
    script = folder / SUBMIT
    text = _SCRIPT.format(name=shlex.quote(str(script)), folder=shlex.quote(str(folder)), runs=RUNS)
    for depth, names in enumerate(levels(plan.trunks())):
        file = f"{LEVELS}/level-{depth}.txt"
        runs = [by_name[name] for name in names]
        write_beside(folder / file, _lines(plan, runs, depth))
        text += _LEVEL.format(
            number=len(runs),
            at_once=f"%{at_once}" if at_once else "",
            base=BASE,
            file=file,
            what=f"{len(runs)} runs, level {depth}",
        )
    write_beside(script, text)
    script.chmod(0o755)
    return script


def _lines(plan: SweepPlan, runs: Sequence[PlannedRun], depth: int) -> str:
    lines = [f"# Level {depth} of the sweep: what slurm/sweep.sbatch trains, a run a line."]
    for run in runs:
        # Of a branch: what differs from its trunk. Of another run: what differs from base.yaml.
        if run.trunk:
            words = [f"{run.trunk.name}@{run.trunk.step}", *words_of(plan.branch_keys(run))]
        else:
            words = words_of(plan.own_keys(run))
        lines.append(" ".join([run.name, *map(_quoted, words)]))
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """Quote a word for the files of sweep.sbatch, in which a backslash stands for itself nowhere.

    They know ``'...'`` and ``"..."``, without an escape in either.
    """
    if "'" not in word:
        return f"'{word}'" if shlex.quote(word) != word else word
    # What stands between two quotes of one kind is in the other kind.
    return '"\'"'.join(f"'{part}'" for part in word.split("'"))
