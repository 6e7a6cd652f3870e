"""Everything that needs a GPU, unattended on any machine with one: correctness, then speed.

    make gpu-check                          all parts, in the locked environment
    make gpu-check WHEELS=DIR               the same without a network: wheels from DIR alone
    python tools/gpu_check.py --parts kernels,loss --output DIR

Each part is a process of its own with a limit of ten minutes; one that fails does not end the
others. At the end there is one table, and `gpu-check.json` beside the results and a log of each
part. What needs Transformer Engine says so where it is absent. Exit status 1 if a part failed.

With WHEELS the wheels, those of tools/wheelhouse.sh or any others, are installed into
`.gpu-check/venv` over this Python's own packages, without their dependencies and without an index.
Where the machine has torch, that is what is measured: wheels of torch, of CUDA's libraries and of
what is compiled against them are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from image_requirements import KEPT
from install_wheels import make_environment

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 600
MOE = ROOT / "examples" / "qwen3-10b-a1b" / "tst.yaml"
DENSE = ROOT / "examples" / "llama-270m" / "tst.yaml"
BYTES_PER_PARAMETER = 18
"""bf16 weight, fp32 gradient, fp32 copy and Adam's two moments."""
SHARE_OF_MEMORY = 0.7
"""What weights and optimizer may take; the rest is for activations and logits."""
ATTEMPTS = 4
"""A slice that does not fit is tried with a layer less this often."""
NO_LIBRARIES = ("nvidia-ml-py", "nvidia-modelopt", "nvidia-resiliency-ext")
"""Packages of NVIDIA that are Python's, and not parts of CUDA that torch's wheel asks for."""
PYTEST = ("-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider")


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    status: str = "not run"
    """``passed``, ``failed``, ``timed out`` or ``skipped``."""
    seconds: float = 0.0
    facts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    command: Sequence[str]
    """Arguments of Python."""
    results: Sequence[str] = ()
    """JSON files that it writes, below the output folder."""
    environment: dict[str, str] = field(default_factory=dict)
    needs_transformer_engine: bool = False
    num_layers: int | None = None
    """Of the model; one less is tried where they do not fit."""


class Machine:
    """The Python that runs the parts, and what it sees."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **self._libraries()}
        probe = (
            "import json, torch, importlib.util as u; p = torch.cuda.get_device_properties(0); "
            "print(json.dumps([p.name, p.total_memory, torch.__version__, "
            "u.find_spec('transformer_engine') is not None]))"
        )
        self.name, self.memory, self.torch, self.has_engine = json.loads(self._ask(probe))
        self.overrides: list[str] = []
        if not self.has_engine:
            name = "GPU_WITHOUT_TRANSFORMER_ENGINE"
            code = f"import json; from tst_megatron.cli.quickstart.chain import {name}"
            code += f"; print(json.dumps({name}))"
            self.overrides = ["profile=null", "bf16=true", *json.loads(self._ask(code))]

    def _ask(self, code: str) -> str:
        asked = subprocess.run(
            [self.python, "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            # Without a GPU, or a package that is missing, no part could run.
            raise SystemExit(f"{self.python} cannot run the parts:\n{asked.stderr[-2000:]}")
        return asked.stdout.splitlines()[-1]

    def layers_that_fit(self) -> int:
        """Layers of 10B-A1B, at full width and with all experts, that train on this device."""
        count = (
            "import json; from pathlib import Path; from tst_megatron.megatron.cpu import host; "
            "host.install(even_with_gpu=True); from tst_megatron.recipe.recipe import load_recipe; "
            "from tst_megatron.recipe.parameters import count_parameters as count; "
            f"print(json.dumps([count(load_recipe(Path({str(MOE)!r}), [f'num-layers={{n}}'])).total"
            " for n in (1, 2)]))"
        )
        one, two = json.loads(self._ask(count))
        room = SHARE_OF_MEMORY * self.memory / BYTES_PER_PARAMETER
        return max(1, 1 + int((room - one) / (two - one)))

    def _libraries(self) -> dict[str, str]:
        """NVIDIA's libraries from wheels, which Transformer Engine's own loader does not find."""
        code = "import sys; print(*sys.path, sep='\\n')"
        command = [self.python, "-c", code]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        roots = [Path(line) for line in shown.stdout.splitlines() if line]
        found = [
            str(root / "nvidia" / name / "lib")
            for root in roots
            for name in ("nccl", "cudnn", "cu13")
            if (root / "nvidia" / name / "lib").is_dir()
        ]
        before = os.environ.get("LD_LIBRARY_PATH")
        return {"LD_LIBRARY_PATH": ":".join([*found, *([before] if before else [])])}

    def run(self, part: Part, output: Path, limit: float) -> Outcome:
        """Run a part with its output in a log, and read what it found."""
        outcome = Outcome(part.name)
        if part.needs_transformer_engine and not self.has_engine:
            outcome.status, outcome.facts = "skipped", ["Transformer Engine is not installed"]
            return outcome
        log = output / f"{part.name}.log"
        start = time.monotonic()
        layers = part.num_layers
        for _ in range(ATTEMPTS):
            more = [] if layers is None else [f"num-layers={layers}"]
            left = limit - (time.monotonic() - start)
            outcome.status = self._run_once([*part.command, *more], part.environment, log, left)
            text = log.read_text(errors="replace")
            if outcome.status != "failed" or "out of memory" not in text or layers in (None, 1):
                break
            layers -= 1
        outcome.seconds = round(time.monotonic() - start, 1)
        outcome.facts = [*_tests(text), *_ratios(output, part.results)]
        if outcome.status != "passed":
            outcome.facts.append(f"see {log.name}: " + " / ".join(text.splitlines()[-2:])[-300:])
        return outcome

    def _run_once(
        self, command: Sequence[str], environment: dict[str, str], log: Path, limit: float
    ) -> str:
        with log.open("w") as file:
            process = subprocess.Popen(
                [self.python, *command],
                cwd=ROOT,
                env={**self.environment, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return "passed" if process.wait(timeout=limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return "timed out"


def _tests(log: str) -> list[str]:
    """The last line of pytest, and the reason of each skip."""
    ends = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|error|skipped).*?)(?: =+)?$", log, re.M)
    skips = re.findall(r"^SKIPPED \[\d+\] (.*)$", log, re.M)
    return [*ends[-1:], *dict.fromkeys(skips)]


def _ratios(output: Path, results: Sequence[str]) -> list[str]:
    """What each comparison says in a line."""
    facts = []
    for name in results:
        path = output / name
        if not path.exists():
            facts.append(f"{name} was not written")
            continue
        document = json.loads(path.read_text())
        for case in document["cases"]:
            facts += [f"{case['title']}: {key} {value}" for key, value in case["notes"].items()]
            shown = [
                f"{timing['name']} x{timing['ratio']['median']:.3f}"
                for timing in case["timings"]
                if timing["ratio"] and timing["name"] != document["baseline"]
            ]
            facts.append(f"{case['title']}, by {document['baseline']}: " + ", ".join(shown))
    return facts


def parts_of(machine: Machine, output: Path) -> Iterator[Part]:
    """Every part, correctness first."""
    shown = {"TESTS_SEE_GPU": "1"}
    yield Part("kernels", [*PYTEST, "tests/kernels"], environment=shown)
    gpu = [*PYTEST, "-m", "gpu"]
    yield Part("parity", [*gpu, "tests/gpu/test_cpu_host_is_honest.py"])
    yield Part("resets", [*gpu, "tests/gpu/test_resets_on_gpu.py"])
    engine = "tests/gpu/test_transformer_engine.py"
    yield Part("transformer-engine", [*gpu, engine], needs_transformer_engine=True)
    bench = ["-m", "tst_megatron", "bench"]
    folder = ["--output", str(output)]
    loss = ["loss.json", "linear-loss.json"]
    yield Part("loss", [*bench, "loss", "--rounds", "20", *folder], loss)
    yield Part("embedding", [*bench, "embedding", "--rounds", "20", *folder], ["embedding.json"])
    sizes = ["--bag-size", "4", "--bag-size", "8", "--bag-size", "16", "--profile"]
    for name, recipe in (("step-llama-270m", DENSE), ("step-10b-a1b", MOE)):
        command = [*bench, "step", str(recipe), *machine.overrides, *sizes]
        command += ["--output", str(output / name)]
        num_layers = machine.layers_that_fit() if recipe == MOE else None
        yield Part(name, command, [f"{name}/step.json"], num_layers=num_layers)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DEVICE")
    parser.add_argument("--wheels", type=Path, help="install from this folder and no network")
    parser.add_argument("--parts", help="names, comma-separated; default: all")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds of a part")
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
        parts.append(Part("two-arms", [*quickstart, "--folder", str(output / "two-arms")]))
    wanted = set(options.parts.split(",")) if options.parts else {part.name for part in parts}
    if unknown := wanted - {part.name for part in parts}:
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there is no such part")
    outcomes = []
    for part in parts:
        if part.name not in wanted:
            continue
        limit = options.limit if part.name != "two-arms" else 60 * options.learn
        outcomes.append(machine.run(part, output, limit))
        print(f"{part.name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s", flush=True)
        document = {"device": machine.name, "torch": machine.torch, "parts": []}
        document["parts"] = [asdict(outcome) for outcome in outcomes]
        # After each part: a machine that is taken away leaves what was found.
        new = output / ".gpu-check.json"
        new.write_text(json.dumps(document, indent=1) + "\n")
        new.replace(output / "gpu-check.json")
    print(table(outcomes))
    (output / "gpu-check.md").write_text(table(outcomes) + "\n")
    shutil.rmtree(ROOT / ".gpu-check", ignore_errors=True)
    return int(any(outcome.status in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
