"""Judge what training imports: torch, Megatron, Transformer Engine, Apex, DeepEP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from tst_megatron.nodes.doctor import fixes
from tst_megatron.nodes.doctor.facts import Facts, Probe
from tst_megatron.nodes.doctor.finding import Finding, note, ok, problem
from tst_megatron.nodes.doctor.gpus import seen_by_torch
from tst_megatron.nodes.doctor.packages import fits
from tst_megatron.nodes.doctor.probe import APEX, TRAINING, WGRAD
from tst_megatron.recipe.profiles import GPU_PROFILES

ENGINE = "transformer-engine"

LEAST_ENGINE = {"bf16": "1.11.0", "tuned": "2.12.0", "mxfp8": "2.12.0", "fp8": "2.12.0"}
"""The oldest that Megatron 0.19.2 accepts: for grouped experts, and for graphs of attention with
delayed weight gradients (``transformer_config.py``, ``arguments.py``)."""

FUSED = ("tuned", "mxfp8", "fp8")
"""Profiles with `gradient-accumulation-fusion` and HybridEP."""

WITHOUT_APEX = "gradient-accumulation-fusion=false behind the recipe"
WITHOUT_DEEP_EP = "moe-token-dispatcher-type=alltoall behind the recipe"


def torch_findings(facts: Facts) -> list[Finding]:
    """Check that torch can be imported and was built for this machine."""
    probe = facts.probes.get("torch")
    if probe is None:
        if facts.packages.required and "torch" not in facts.packages.copies:
            # Said as a requirement.
            return []
        return [_broken("torch", facts, Probe(problem="there is no module torch"))]
    if probe.problem:
        return [_broken("torch", facts, probe)]
    torch = probe.answers
    if torch["cuda"] is None and facts.gpus.are_there:
        return [
            problem(
                "torch",
                f"{torch['version']}, built without CUDA, on a machine with a GPU",
                needed="torch with CUDA",
                fix=fixes.reinstall(facts.packages, fixes.as_installed(facts.packages, "torch"))
                + "; PyPI's wheels for Linux have CUDA",
            )
        ]
    return [ok("torch", f"{torch['version']}, CUDA {torch['cuda'] or 'none'}")]


def _broken(name: str, facts: Facts, probe: Probe) -> Finding:
    version = facts.packages.version(name)
    of_environment = [
        variable
        for variable in ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH")
        if facts.machine.environment.get(variable)
    ]
    unset = f"try without {' and '.join(of_environment)}; else " if of_environment else ""
    return problem(
        name,
        f"{version or 'of unknown version'}: {probe.problem}",
        needed="a package that can be imported",
        fix=f"{unset}{fixes.reinstall(facts.packages, fixes.as_installed(facts.packages, name))}",
    )


def megatron_findings(facts: Facts, modules: Mapping[str, str]) -> list[Finding]:
    """Check that Megatron has its training loop and its extension, and can be imported."""
    version = facts.packages.version("megatron-core") or "of unknown version"
    wanted = fixes.required(facts.packages, "megatron-core")
    fix = f"{fixes.reinstall(facts.packages, wanted)}; PyPI's wheel has both"
    if "megatron.core" not in modules:
        if "megatron-core" not in facts.packages.copies:
            # Said as a requirement.
            return []
        found = f"{version}, without a module megatron.core"
        return [problem("megatron-core", found, needed="its modules", fix=fix)]
    helpers = facts.probes.get("helpers", Probe())
    lacking = [] if TRAINING in modules else [f"no {TRAINING}"]
    lacking += [f"helpers_cpp: {helpers.problem}"] if helpers.problem else []
    if lacking:
        return [
            problem(
                "megatron-core",
                f"{version}: {'; '.join(lacking)}",
                needed="megatron.training and the compiled helpers_cpp",
                fix=fix,
            )
        ]
    imported = facts.probes.get("megatron")
    if imported is None:
        return [ok("megatron-core", f"{version}, has megatron.training and helpers_cpp")]
    if imported.problem and seen_by_torch(facts):
        return [
            problem(
                "megatron-core",
                f"{version}: {imported.problem}",
                needed="all that training imports",
                fix=fixes.BUILD_AGAIN
                if facts.packages.image
                else "install the package that this names, or uv sync --frozen for all of uv.lock",
            )
        ]
    return [ok("megatron-core", f"{version}, can be imported")] if not imported.problem else []


# --- Transformer Engine ---------------------------------------------------------------------------


def engine_findings(facts: Facts, profile: str) -> list[Finding]:
    """Check for Transformer Engine, if the profile needs it."""
    probe, version = facts.probes.get("transformer engine"), facts.packages.version(ENGINE)
    tested = _tested(facts)
    fix = _engine_fix(facts, tested)
    if profile not in GPU_PROFILES:
        if probe and probe.problem:
            return [
                note("Transformer Engine", f"{version}: {probe.problem}", fix=f"repair it: {fix}")
            ]
        return []
    if probe is None:
        return [
            problem(
                "Transformer Engine",
                "not installed",
                needed=f"{tested}, for profile {profile}",
                fix=fix,
            )
        ]
    if probe.problem:
        has_part = "transformer-engine-torch" in facts.packages.copies
        is_of_pypi = "transformer-engine-cu13" in facts.packages.copies
        lacks = ", its part for torch (transformer-engine-torch) is missing"
        return [
            problem(
                "Transformer Engine",
                f"{version}{lacks if is_of_pypi and not has_part else ''}: {probe.problem}",
                needed="transformer_engine.pytorch, built for this torch",
                fix=fix,
            )
        ]
    return [_engine_version(version, tested, profile, fix)]


def _tested(facts: Facts) -> Requirement:
    texts = facts.packages.required.get("gpu", ())
    named = (requirement for requirement in map(Requirement, texts) if requirement.name == ENGINE)
    return next(named, Requirement(ENGINE))


def _engine_fix(facts: Facts, tested: Requirement) -> str:
    if facts.packages.image:
        return f"{fixes.BUILD_AGAIN} from a newer image of NVIDIA, which has it"
    build = fixes.install(
        facts.packages, str(tested), options="--no-build-isolation ", all_of=" --extra gpu"
    )
    return f"{build}, where CUDA's headers are; NVIDIA's images have it"


def _engine_version(version: str | None, tested: Requirement, profile: str, fix: str) -> Finding:
    least = LEAST_ENGINE[profile]
    try:
        is_old = version is not None and Version(version) < Version(least)
        is_tested = version is not None and fits(tested.specifier, version)
    except InvalidVersion:
        is_old = is_tested = False
    if is_old:
        return problem(
            "Transformer Engine",
            f"{version}",
            needed=f"{least} or newer for profile {profile}",
            fix=fix,
        )
    if is_tested:
        return ok("Transformer Engine", f"{version}")
    return note(
        "Transformer Engine",
        f"{version or 'of unknown version'}",
        needed=f"{tested} is what recipes are checked for; tst-megatron check on this machine asks "
        "Megatron about this one",
    )


# --- Apex and DeepEP ------------------------------------------------------------------------------


def apex_findings(facts: Facts, modules: Mapping[str, str], profile: str) -> list[Finding]:
    """Check that Apex is NVIDIA's, and that it has its extension if the profile needs that.

    Args:
        facts: all of them.
        modules: where each module would be imported from.
        profile: of the run.
    """
    return [*_apex(facts, modules, profile), *_extension(facts, profile)]


def _apex(facts: Facts, modules: Mapping[str, str], profile: str) -> list[Finding]:
    if APEX not in modules:
        return []
    version = facts.packages.version(APEX)
    place = Path(modules[APEX])
    folder = place.parent if place.suffix else place
    found = f"{version or 'of unknown version'} in {folder}"
    if (folder / "normalization").is_dir() and (folder / "multi_tensor_apply").is_dir():
        return [ok("Apex", f"{found}, NVIDIA's")]
    is_on_path = str(folder.parent) in facts.machine.environment.get("PYTHONPATH", "").split(":")
    fix = f"take {folder.parent} off PYTHONPATH"
    fix = fix if is_on_path or not version else fixes.uninstall(facts.packages, APEX)
    # On the CPU any Apex is hidden from Megatron.
    level = note if profile == "cpu" else problem
    return [
        level(
            "Apex",
            f"{found}, a namesake: another project, not NVIDIA's",
            needed="NVIDIA's Apex or none: on a GPU, Megatron takes the fused LayerNorm of any "
            "apex",
            fix=fix,
        )
    ]


def _extension(facts: Facts, profile: str) -> list[Finding]:
    if profile not in FUSED:
        return []
    probe, image = facts.probes.get("wgrad"), facts.packages.image
    if probe and not probe.problem:
        return [ok(WGRAD, "can be imported")]
    found = probe.problem if probe and probe.problem else "not installed"
    if image and image.has_apex is False and probe is None:
        return [
            note(
                WGRAD,
                "not installed: this image was built without Apex",
                needed=f"for gradient-accumulation-fusion of profile {profile}",
                fix=WITHOUT_APEX,
            )
        ]
    return [
        problem(
            WGRAD,
            found,
            needed=f"this extension of NVIDIA's Apex, for gradient-accumulation-fusion of profile "
            f"{profile}",
            fix=f"build Apex from github.com/NVIDIA/apex for this torch (not from PyPI), or "
            f"{WITHOUT_APEX}",
        )
    ]


def deep_ep_findings(facts: Facts, profile: str) -> list[Finding]:
    """Check for HybridEP, which the fused profiles use for experts on several GPUs."""
    if profile not in FUSED:
        return []
    probe = facts.probes.get("deep_ep")
    if probe and probe.answers.get("has_hybrid_ep"):
        return [ok("DeepEP", "has HybridEP")]
    found = "not installed"
    if probe:
        found = probe.problem or "another branch, without HybridEP"
    return [
        note(
            "DeepEP",
            found,
            needed=f"DeepEP's branch hybrid-ep, for experts on several GPUs with profile {profile}",
            fix=f"build that branch, or {WITHOUT_DEEP_EP}",
        )
    ]
