"""Collect all findings about a machine, in the order in which a person would repair them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tst_megatron.nodes.doctor import gpus, limits, machine, packages, software
from tst_megatron.nodes.doctor.facts import Facts
from tst_megatron.nodes.doctor.finding import Finding, Level


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Findings about one host, for one profile."""

    host: str
    profile: str
    is_default_profile: bool
    """True if nobody asked for a profile and the machine's own was taken."""
    findings: Sequence[Finding]
    seconds: float
    """Time that the diagnosis took."""

    @property
    def can_train(self) -> bool:
        """Tell whether no finding is a problem."""
        return all(finding.level is not Level.PROBLEM for finding in self.findings)

    def number(self, level: Level) -> int:
        """Count the findings of a level."""
        return sum(finding.level is level for finding in self.findings)


def findings_of(facts: Facts, profile: str) -> list[Finding]:
    """Return all findings that follow from the facts, for training with a profile.

    Args:
        facts: all of them.
        profile: of the run.
    """
    modules: Mapping[str, str] = facts.probes["modules"].answers
    is_compute = facts.packages.image is not None or "SLURM_JOB_ID" in facts.machine.environment
    return [
        *packages.image_findings(facts.packages),
        *packages.python_findings(facts.packages),
        *machine.path_findings(facts.probes["modules"]),
        *packages.requirement_findings(facts.packages, modules),
        *packages.metadata_findings(facts.packages),
        *packages.indirect_findings(facts.packages),
        *packages.extra_findings(facts.packages),
        *packages.copy_findings(facts.packages, modules),
        *software.torch_findings(facts),
        *software.megatron_findings(facts, modules),
        *gpus.driver_findings(facts, profile),
        *gpus.gpu_findings(facts, profile),
        *software.engine_findings(facts, profile),
        *software.apex_findings(facts, modules, profile),
        *software.deep_ep_findings(facts, profile),
        *gpus.nccl_findings(facts, profile),
        *gpus.gloo_findings(facts),
        *machine.memory_findings(facts.machine, profile),
        *limits.limit_findings(facts.machine, profile),
        *machine.disk_findings(facts.machine, profile),
        *machine.compiler_findings(facts.machine, profile),
        *machine.user_findings(facts.machine),
        *machine.clock_findings(facts.machine),
        *machine.environment_findings(facts.machine, profile, is_compute=is_compute),
    ]
