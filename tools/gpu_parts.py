"""The parts of ``gpu_check.py``: what each one runs, on which Python, and what came of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOE = ROOT / "examples" / "qwen3-10b-a1b" / "tst.yaml"
DENSE = ROOT / "examples" / "llama-270m" / "tst.yaml"
BYTES_PER_PARAMETER = 18
"""bf16 weight, fp32 gradient, fp32 copy and Adam's two moments."""
SHARE_OF_MEMORY = 0.7
"""What weights and optimizer may take; the rest is for activations and logits."""
ATTEMPTS = 4
"""A slice that does not fit is tried with a layer less this often."""
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
    minutes: float
    """The most that it may take."""
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
            "import json, torch, importlib.util as u, importlib.metadata as m; "
            "p = torch.cuda.get_device_properties(0); "
            "print(json.dumps([p.name, p.total_memory, torch.__version__, "
            "m.version('transformer-engine') if u.find_spec('transformer_engine') else None]))"
        )
        self.name, self.memory, self.torch, self.engine = json.loads(self._ask(probe))
        self.overrides: list[str] = []
        if self.engine is None:
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
        if part.needs_transformer_engine and self.engine is None:
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
    """Every part, the most valuable answer first."""
    gpu = [*PYTEST, "-m", "gpu"]
    engine = "tests/gpu/test_transformer_engine.py"
    bench = ["-m", "tst_megatron", "bench"]
    folder = ["--output", str(output)]
    yield Part("kernels", [*PYTEST, "tests/kernels"], 2.5, environment={"TESTS_SEE_GPU": "1"})
    loss = ["loss.json", "linear-loss.json"]
    yield Part("loss", [*bench, "loss", "--rounds", "20", *folder], 2, loss)
    yield _step("step-llama-270m", DENSE, 2, machine, output)
    yield Part("transformer-engine", [*gpu, engine], 5, needs_transformer_engine=True)
    yield _step("step-10b-a1b", MOE, 2.5, machine, output, machine.layers_that_fit())
    yield Part("parity", [*gpu, "tests/gpu/test_cpu_host_is_honest.py"], 2)
    yield Part("resets", [*gpu, "tests/gpu/test_resets_on_gpu.py"], 1.5)
    embedding = [*bench, "embedding", "--rounds", "20", *folder]
    yield Part("embedding", embedding, 1.5, ["embedding.json"])


def _step(
    name: str,
    recipe: Path,
    minutes: float,
    machine: Machine,
    output: Path,
    num_layers: int | None = None,
) -> Part:
    """Steps of a recipe's model at bag sizes 4 to 16 against those at 1."""
    sizes = ["--bag-size", "4", "--bag-size", "8", "--bag-size", "16", "--profile"]
    command = ["-m", "tst_megatron", "bench", "step", str(recipe), *machine.overrides, *sizes]
    command += ["--output", str(output / name)]
    return Part(name, command, minutes, [f"{name}/step.json"], num_layers=num_layers)
