"""State the margins: how much worse a model may be before it counts as worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from tst_megatron.audit.items import Kind, Probe

MARGINS: Mapping[Kind, float] = {
    "loss": 0.02,
    "slice": 0.03,
    "gain": 0.1,
    "accuracy": 0.05,
    "calibration": 0.01,
    "probability": 0.02,
    "entropy": 0.05,
}
"""By the kind of a probe, in its unit. The first is also the most by which two models at equal loss
may differ."""

UNITS: Mapping[Kind, str] = {
    "loss": "nats",
    "slice": "nats",
    "gain": "nats",
    "accuracy": "share right",
    "calibration": "score",
    "probability": "probability",
    "entropy": "nats",
}

NOISE_OF_A_MARGIN = 0.25
"""Standard deviation from seed to seed, as a share of the margin, that is assumed where one seed of
the baseline is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Margins:
    """The margins of an audit."""

    of_kind: Mapping[str, float]
    of_probe: Mapping[str, float]

    def of(self, probe: Probe) -> float:
        """Return the margin of a probe."""
        return self.of_probe.get(probe.name, self.of_kind[probe.kind])

    def check(self, probes: Sequence[str], left_out: Sequence[str]) -> None:
        """Refuse names that are neither of a kind nor of a probe.

        Raises:
            ValueError: with all of them.
        """
        unknown = [name for name in self.of_probe if name not in (*probes, *left_out)]
        if unknown:
            raise ValueError(
                f"--margin {', '.join(unknown)}: is neither a kind ({', '.join(MARGINS)}) nor a "
                "probe of this audit. Take a name as the table has it"
            )


def parse_margins(given: Sequence[str]) -> Margins:
    """Return the margins, with those that were given on the command line.

    Args:
        given: such as ``accuracy=0.1`` or ``digit order, inside=0.02``.

    Raises:
        ValueError: with all that is wrong.
    """
    of_kind: dict[str, float] = {str(kind): value for kind, value in MARGINS.items()}
    of_probe: dict[str, float] = {}
    problems = []
    for each in given:
        name, _, number = each.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not 0 < value < math.inf:
            problems.append(
                f"--margin {each}: is not NAME=NUMBER with a number above 0, such as accuracy=0.1"
            )
            continue
        (of_kind if name in get_args(Kind) else of_probe)[name] = value
    if problems:
        raise ValueError("\n".join(problems))
    return Margins(of_kind=of_kind, of_probe=of_probe)
