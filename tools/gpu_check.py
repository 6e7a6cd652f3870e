"""Everything that needs a GPU, unattended on any machine with one: the most valuable answers first.

    make gpu-check                          all parts, in the locked environment
    make gpu-check PARTS="--minutes 9"      those that fit into nine minutes; called again, the rest
    make gpu-check WHEELS=DIR               the same without a network: wheels from DIR alone
    python tools/gpu_check.py --parts kernels,loss --output DIR

Each part is a process of its own with a limit in minutes; one that fails does not end the others.
At the end there is one table, and `gpu-check.json` beside the results and a log of each part. A
part that has passed with this code on this device is not repeated (`--again`). What needs
Transformer Engine says so where it is absent. Exit status 1 if a part failed, and else 75 if some
are left; make turns both into 2.

With WHEELS the wheels, those of tools/wheelhouse.sh or any others, are installed into
`.gpu-check/venv` over this Python's own packages, without their dependencies and without an index.
Where the machine has torch, that is what is measured: wheels of torch, of CUDA's libraries and of
what is compiled against them are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from gpu_parts import ROOT, Machine, Outcome, Part, parts_of
from image_requirements import KEPT
from install_wheels import make_environment

SOME_ARE_LEFT = 75
"""As a training job that saved and goes on when it is started again."""
NO_LIBRARIES = ("nvidia-ml-py", "nvidia-modelopt", "nvidia-resiliency-ext")
"""Packages of NVIDIA that are Python's, and not parts of CUDA that torch's wheel asks for."""
RECORD = "gpu-check.json"


def table(outcomes: Sequence[Outcome]) -> str:
    """One table of all parts."""
    lines = ["| part | | seconds | |", "|---|---|---|---|"]
    for each in outcomes:
        facts = "<br>".join(fact.replace("|", "/") for fact in each.facts)
        lines.append(f"| {each.part} | {each.status} | {each.seconds:.0f} | {facts} |")
    return "\n".join(lines)


def left_to_the_machine(seen: set[str], wheels: Iterable[str]) -> set[str]:
    """Wheels that would cover the torch of a machine, or mix another CUDA or NumPy with it.

    Args:
        seen: names of the packages that the machine's Python has.
        wheels: names of the wheels.
    """
    if "torch" not in seen:
        return set()
    compiled = set(KEPT) - ({"numpy"} - seen)
    left = {
        name
        for name in wheels
        if name in compiled or (name.startswith(("cuda-", "nvidia-")) and name not in NO_LIBRARIES)
    }
    if left:
        print(f"the machine has torch: left out are {', '.join(sorted(left))}", flush=True)
    return left


def code() -> str:
    """A digest of all that the parts run, also where there is no git."""
    rooms = (ROOT / room for room in ("tst_megatron", "tests", "examples", "tools"))
    kinds = (".py", ".yaml", ".json")
    files = [path for room in rooms for path in room.rglob("*") if path.suffix in kinds]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def recorded(output: Path, of: dict[str, str | None]) -> dict[str, Outcome]:
    """What came of the parts that were run with this code on this device, by name."""
    path = output / RECORD
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    if {key: before.get(key) for key in of} != of:
        return {}
    return {each["part"]: Outcome(**each) for each in before["parts"]}


def write(output: Path, of: dict[str, str | None], outcomes: Iterable[Outcome]) -> None:
    """Record what came of the parts so far, whole or not at all."""
    document = {**of, "parts": [asdict(outcome) for outcome in outcomes]}
    new = output / f".{RECORD}"
    new.write_text(json.dumps(document, indent=1) + "\n")
    new.replace(output / RECORD)


def run_parts(
    machine: Machine,
    parts: Sequence[Part],
    output: Path,
    *,
    end: float = math.inf,
    again: bool = False,
) -> list[Outcome]:
    """Run the parts that have not passed yet and that fit before the end (of ``monotonic``)."""
    versions = {"torch": machine.torch, "transformer-engine": machine.engine}
    of = {"device": machine.name, **versions, "code": code()}
    known = recorded(output, of)
    for part in parts:
        if part.name in known and known[part.name].status == "passed" and not again:
            continue
        if time.monotonic() + 60 * part.minutes > end:
            print(f"{part.name}: {part.minutes:g} minutes are not left", flush=True)
            continue
        outcome = machine.run(part, output, 60 * part.minutes)
        known[part.name] = outcome
        print(f"{part.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)
        # After each part: a machine that is taken away leaves what was found.
        write(output, of, known.values())
    return [known.get(part.name, Outcome(part.name)) for part in parts]


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DEVICE")
    parser.add_argument("--wheels", type=Path, help="install from this folder and no network")
    parser.add_argument("--parts", help="names, comma-separated; default: all")
    parser.add_argument("--minutes", type=float, help="of this call: what does not fit is left")
    parser.add_argument("--again", action="store_true", help="also parts that have passed before")
    parser.add_argument("--learn", type=float, default=0, help="minutes for two arms of a toy")
    options = parser.parse_args()
    python = Path(sys.executable)
    if options.wheels:
        environment = ROOT / ".gpu-check" / "venv"
        python = make_environment(
            options.wheels.resolve(), environment, over_this_python=left_to_the_machine
        )
    machine = Machine(python)
    slug = re.sub(r"[^a-z0-9]+", "-", machine.name.lower()).strip("-")
    output = (options.output or ROOT / "benchmarks" / "results" / slug).resolve()
    output.mkdir(parents=True, exist_ok=True)
    print(f"{machine.name}, torch {machine.torch}, results in {output}", flush=True)
    parts = list(parts_of(machine, output))
    if options.learn:
        quickstart = ["-m", "tst_megatron", "quickstart", "--compare"]
        quickstart += ["--folder", str(output / "two-arms")]
        parts.append(Part("two-arms", quickstart, options.learn))
    wanted = set(options.parts.split(",")) if options.parts else {part.name for part in parts}
    if unknown := wanted - {part.name for part in parts}:
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there is no such part")
    parts = [part for part in parts if part.name in wanted]
    if long := [part for part in parts if part.minutes > (options.minutes or math.inf)]:
        names = ", ".join(f"{part.name} may take {part.minutes:g}" for part in long)
        parser.error(f"--minutes {options.minutes:g} is too short, since {names}; see --parts")
    end = started + 60 * (options.minutes or math.inf)
    outcomes = run_parts(machine, parts, output, end=end, again=options.again)
    print(table(outcomes))
    (output / "gpu-check.md").write_text(table(outcomes) + "\n")
    shutil.rmtree(ROOT / ".gpu-check", ignore_errors=True)
    if any(outcome.status in ("failed", "timed out") for outcome in outcomes):
        return 1
    return SOME_ARE_LEFT if any(outcome.status == "not run" for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
