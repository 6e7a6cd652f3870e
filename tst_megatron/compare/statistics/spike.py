"""Measure the rise of the next-token loss at the switch from superposition to recovery."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tst_megatron.compare.results import Curve, Spike

SETTLED = (0.1, 0.2)
"""Share of the recovery phase: from where to where the level is taken that the loss settles at."""
SMOOTHED_STEPS = 9
GONE = 0.9


def find_spike(phases: Sequence[tuple[int, int]], losses: Curve) -> Spike | None:
    """Return the spike of a run's next-token training loss after its last switch.

    The *level* is the mean loss from 10% to 20% of the recovery phase's steps. The *height* is the
    loss of the first recovery step above it. The *length* is the number of recovery steps until the
    loss, as the mean of nine recorded steps in a row, is above the level by a tenth of the height
    or less; a mean counts at its middle step.

    Args:
        phases: (bag size, steps) of each.
        losses: next-token training losses; every step of the first ones after the switch.

    Returns:
        None without a switch, or where the run has not come as far as the level, or where its first
        loss is not above that.
    """
    if len(phases) < 2 or phases[-1][0] != 1 or phases[-2][0] == 1:
        return None
    switch, num_steps = sum(steps for _, steps in phases[:-1]), phases[-1][1]
    steps = losses.steps - switch
    values = losses.values[steps > 0]
    steps = steps[steps > 0]
    low, high = (share * num_steps for share in SETTLED)
    settled = values[(steps >= low) & (steps <= high)]
    # A first recorded step long after the switch has missed the top.
    if len(settled) < SMOOTHED_STEPS or steps[-1] < high or steps[0] > max(1, 0.001 * num_steps):
        return None
    level = float(settled.mean())
    height = float(values[0]) - level
    if height <= 0:
        return None
    means = np.convolve(values, np.full(SMOOTHED_STEPS, 1 / SMOOTHED_STEPS), mode="valid")
    middles = steps[SMOOTHED_STEPS // 2 :][: len(means)]
    is_gone = means <= level + (1 - GONE) * height
    length = int(middles[np.argmax(is_gone)]) if is_gone.any() else None
    return Spike(switch_step=switch, height=height, length=length)
