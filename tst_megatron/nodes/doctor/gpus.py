"""Findings on the driver, the GPUs, and what carries collectives: NCCL and gloo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from tst_megatron.nodes.doctor import fixes
from tst_megatron.nodes.doctor.facts import Facts
from tst_megatron.nodes.doctor.finding import Finding, note, ok, problem
from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.system.machine import nvidia_smi

DRIVERS = {"12": 525, "13": 580}
"""The oldest driver branch for each CUDA, without packages for forward compatibility.

Source: NVIDIA, CUDA Compatibility, "minor version compatibility".
"""

HIDDEN = ("", "-1", "NoDevFiles", "none", "void")
"""Values of CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES by which no GPU is seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """GPUs that a profile is made for."""

    least: tuple[int, int]
    """Compute capability."""
    majors: tuple[int, ...]
    """Those that it is made for; others above the least are untried."""
    words: str


HARDWARE = {
    "bf16": Hardware(least=(8, 0), majors=(8, 9, 10, 12), words="a GPU with BF16"),
    "tuned": Hardware(least=(9, 0), majors=(9, 10), words="Hopper or Blackwell"),
    "mxfp8": Hardware(least=(10, 0), majors=(10,), words="Blackwell (B200)"),
    "fp8": Hardware(least=(9, 0), majors=(9,), words="Hopper"),
}
"""GPUs of each profile, as in docs/profiles.md."""


def seen_by_torch(facts: Facts) -> Mapping[str, Any]:
    """Return torch's answers; none where torch is missing or broken, which other findings say."""
    return facts.probes["torch"].answers if "torch" in facts.probes else {}


def default_profile(facts: Facts) -> str:
    """The profile that is meant where none is asked for."""
    has_gpus = facts.gpus.are_there or seen_by_torch(facts).get("num_gpus", 0)
    return "bf16" if has_gpus else "cpu"


# --- driver ---------------------------------------------------------------------------------------


def driver_findings(facts: Facts, profile: str) -> list[Finding]:
    """Check for a driver that is new enough for the CUDA that torch was built with."""
    driver, torch = facts.gpus.driver, seen_by_torch(facts)
    least = DRIVERS.get(str(torch.get("cuda")).partition(".")[0])
    if driver is None:
        if profile not in GPU_PROFILES or torch.get("num_gpus"):
            return []
        wanted = f", R{least} or newer" if least else ""
        return [
            problem(
                "driver",
                "no NVIDIA driver is loaded",
                needed=f"a GPU and its driver{wanted} for profile {profile}",
                fix="run this on a node with GPUs, inside a job that asks for them; without GPUs "
                "use profile=cpu",
            )
        ]
    branch = driver.partition(".")[0]
    if least is None or not branch.isdigit() or int(branch) >= least:
        return [ok("driver", driver)]
    found, needed = driver, f"R{least} or newer for CUDA {torch['cuda']} of torch"
    if torch["num_gpus"]:
        return [note("driver", f"{found}, made to fit by forward compatibility", needed=needed)]
    return [
        problem(
            "driver",
            found,
            needed=needed,
            fix=f"update the driver to R{least} or newer; or on data-center GPUs put NVIDIA's "
            "cuda-compat on LD_LIBRARY_PATH; or use a torch or image of an older CUDA",
        )
    ]


# --- GPUs -----------------------------------------------------------------------------------------


def gpu_findings(facts: Facts, profile: str) -> list[Finding]:
    """Check that torch sees every GPU, that they work, and that the profile is made for them."""
    torch = seen_by_torch(facts)
    found = [*_health(facts)]
    if profile == "cpu":
        return [*found, *_on_the_cpu(facts, torch)]
    if not torch:
        return found
    found += [*_count(facts, torch)]
    found += [*_sums(torch["sum_problems"])]
    return found + [*_capabilities(torch["gpus"], profile)]


def _health(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus.are_there:
        answer = facts.gpus.health.problem
        if answer not in (None, nvidia_smi.NOT_FOUND):
            yield note("nvidia-smi", answer, needed="nothing: there is no NVIDIA driver either")
        return
    if not facts.gpus.health.rows:
        yield note(
            "nvidia-smi",
            facts.gpus.health.problem or "it names no GPU",
            needed="its answer on the health of each GPU",
            fix="in a container let NVIDIA_DRIVER_CAPABILITIES have utility",
        )
        return
    for text in nvidia_smi.gpu_problems(facts.gpus.health, is_idle=False):
        yield problem(
            "nvidia-smi", text, needed="GPUs without faults", fix="leave the node out until mended"
        )


def _on_the_cpu(facts: Facts, torch: Mapping[str, Any]) -> Iterator[Finding]:
    if torch.get("num_gpus"):
        yield problem(
            "GPUs",
            f"torch sees {torch['num_gpus']}",
            needed="none for profile cpu, which is refused beside a GPU",
            fix="use another profile, or hide them: export CUDA_VISIBLE_DEVICES=",
        )
        return
    are_hidden = " that this process may use" if facts.gpus.are_there else ""
    yield note(
        "GPUs",
        f"none{are_hidden}: on the CPU only small runs make sense",
        needed="nothing for the quickstart, tests and exports; a GPU for everything else",
        fix="run this in a job that asks for GPUs, with --profile of the recipe",
    )


def _count(facts: Facts, torch: Mapping[str, Any]) -> Iterator[Finding]:
    seen, there = torch["num_gpus"], len(facts.gpus.health.rows)
    if torch["cuda"] is None or (not seen and not facts.gpus.are_there):
        # Of which torch's finding and the driver's speak.
        return
    if seen and seen >= there:
        names = sorted({each["name"] for each in torch["gpus"]})
        yield ok("GPUs", f"{seen} of {', '.join(names) or 'unknown kind'}")
        return
    environment = facts.machine.environment
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    hidden = environment.get("NVIDIA_VISIBLE_DEVICES") in HIDDEN
    if seen and visible is not None:
        yield note("GPUs", f"{seen} of {there}: CUDA_VISIBLE_DEVICES={visible}")
        return
    said = f": {'; '.join(torch['warnings'])}" if torch["warnings"] else ""
    if visible in HIDDEN:
        fix = f"they are hidden by CUDA_VISIBLE_DEVICES={visible}: unset it"
    elif not there or hidden:
        fix = "start the container with its GPUs (docker --gpus all, apptainer --nv, under pyxis "
        fix += "NVIDIA_VISIBLE_DEVICES=all), and let the job ask for GPUs"
    else:
        fix = "look at nvidia-smi and dmesg; on NVSwitch systems at the fabric manager"
    yield problem(
        "GPUs",
        f"torch sees {seen}, nvidia-smi {there}{said}",
        needed="every GPU of the node",
        fix=fix,
    )


def _sums(problems: Sequence[str | None]) -> Iterator[Finding]:
    for text in dict.fromkeys(each for each in problems if each):
        gpus = [str(gpu) for gpu, each in enumerate(problems) if each == text]
        yield problem(
            "GPUs",
            f"GPU {', '.join(gpus)} of torch: {text}",
            needed="a sum on every GPU",
            fix="if torch has no kernels for it, use one that has; else look at nvidia-smi and "
            "dmesg, and leave the node out",
        )


def _capabilities(gpus: list[dict[str, Any]], profile: str) -> Iterator[Finding]:
    wanted = HARDWARE[profile]
    for name, (major, minor) in sorted(
        {(each["name"], tuple(each["capability"])) for each in gpus}
    ):
        found = f"{name}, compute capability {major}.{minor}"
        if (major, minor) < wanted.least:
            yield problem(
                "GPUs",
                found,
                needed=f"{'.'.join(map(str, wanted.least))} or above for profile {profile}: "
                f"{wanted.words}",
                fix="use a profile for these GPUs: docs/profiles.md has the table",
            )
        elif major not in wanted.majors:
            yield note("GPUs", found, needed=f"{wanted.words}, for which profile {profile} is made")


# --- collectives ----------------------------------------------------------------------------------


def nccl_findings(facts: Facts, profile: str) -> list[Finding]:
    """Check that NCCL is the one that torch was installed with."""
    torch = seen_by_torch(facts)
    if not torch or torch["cuda"] is None or profile not in GPU_PROFILES:
        return []
    if "nccl" not in torch["carriers"]:
        return [
            problem(
                "NCCL",
                f"torch {torch['version']} was built without it",
                needed="NCCL, which carries collectives between GPUs",
                fix="install torch of PyPI, or NVIDIA's image",
            )
        ]
    loaded, place = torch["nccl"], torch["nccl_file"] or "torch itself"
    name, wheel = next(
        (
            (name, facts.packages.version(name))
            for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
            if facts.packages.version(name)
        ),
        (None, None),
    )
    if wheel is None or _release(wheel) == _release(loaded):
        return [ok("NCCL", f"{loaded} from {place}")]
    grade = problem if _release(loaded) < _release(wheel) else note
    return [
        grade(
            "NCCL",
            f"{loaded} from {place}, while {name} is {wheel}",
            needed=f"{wheel}, with which this torch was installed, or newer",
            fix=f"take {Path(place).parent} off LD_LIBRARY_PATH and LD_PRELOAD, or "
            + fixes.reinstall(facts.packages, f"{name}=={wheel}"),
        )
    ]


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def gloo_findings(facts: Facts) -> list[Finding]:
    """Check that gloo starts; it carries what is on the CPU, also beside NCCL."""
    torch = seen_by_torch(facts)
    if not torch:
        return []
    if "gloo" not in torch["carriers"]:
        return [
            problem(
                "gloo",
                f"torch {torch['version']} was built without it",
                needed="gloo, which carries checkpoints and all collectives on the CPU",
                fix="install torch of PyPI, or NVIDIA's image",
            )
        ]
    if torch["gloo_problem"]:
        return [
            problem(
                "gloo",
                torch["gloo_problem"],
                needed="a network interface and a host name that leads to it",
                fix="export GLOO_SOCKET_IFNAME=INTERFACE (ip -brief address lists them), or add "
                "the host's name to /etc/hosts",
            )
        ]
    return [ok("gloo", "starts")]
