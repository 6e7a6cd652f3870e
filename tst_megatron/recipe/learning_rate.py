"""Compute the learning rate of every step as Megatron does, and draw it in a line for the plan."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from tst_megatron.schedule import Schedule

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Letters of the drawing, each the largest rate of its share of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRate:
    """The rate of each optimizer step, as Megatron's ``OptimizerParamScheduler.get_lr`` has it.

    Source: ``megatron/core/optimizer_param_scheduler.py`` of megatron-core 0.19.2. A test holds it
    against that class, step by step.
    """

    largest: float
    smallest: float
    first: float
    """Where the warm-up begins."""
    style: str
    warmup: float
    """Steps; a fraction may make it a part of one."""
    end: int
    """The step at which a decay is done, after which the rate is the smallest."""
    decay: int
    """Steps of WSD's decay, which ends there; 0 for other styles."""
    decay_style: str
    num_steps: int
    """Of the run."""

    @classmethod
    def of(cls, values: argparse.Namespace) -> LearningRate:
        """Make the schedule that the keys describe.

        Args:
            values: what the recipe's keys came to; they have passed ``number_problems``.
        """
        end = values.lr_decay_iters or values.train_iters
        fraction = values.lr_warmup_fraction
        is_wsd = values.lr_decay_style == "WSD"
        return cls(
            largest=values.lr,
            smallest=values.min_lr,
            first=values.lr_warmup_init,
            style=values.lr_decay_style,
            warmup=values.lr_warmup_iters if fraction is None else fraction * end,
            end=end,
            decay=(values.lr_wsd_decay_iters or 0) if is_wsd else 0,
            decay_style=values.lr_wsd_decay_style,
            num_steps=values.train_iters,
        )

    @property
    def decay_start(self) -> int:
        """The last step at the largest rate, before a decay begins."""
        start = self.end - self.decay if self.style == "WSD" else math.ceil(self.warmup)
        return max(0, start)

    def at(self, step: int) -> float:
        """Return the rate of the step that follows ``step`` completed ones."""
        if self.warmup > 0 and step <= self.warmup:
            return self.first + (self.largest - self.first) * step / self.warmup
        if self.style == "constant":
            return self.largest
        if step > self.end:
            return self.smallest
        if self.style == "inverse-square-root":
            rate = self.largest * math.sqrt(max(self.warmup, 1)) / math.sqrt(max(step, 1))
            return max(self.smallest, rate)
        share = self._share(step)
        return self.smallest + share * (self.largest - self.smallest)

    def _share(self, step: int) -> float:
        """Return the share of the difference between largest and smallest rate that is left."""
        if self.style == "WSD":
            done = (step - (self.end - self.decay)) / max(1, self.decay)
            return 1.0 if done <= 0 else _left(self.decay_style, done)
        return _left(self.style, (step - self.warmup) / (self.end - self.warmup))

    def drawing(self) -> str:
        """Draw the run in one line of blocks, low to high."""
        letters = min(WIDTH, self.num_steps)
        highest = self.largest or 1.0
        line = ""
        for number in range(letters):
            first = number * self.num_steps // letters
            last = max(first, (number + 1) * self.num_steps // letters - 1)
            peak = min(max(math.floor(self.warmup), first), last)
            rate = max(self.at(first), self.at(peak), self.at(last))
            line += BLOCKS[min(len(BLOCKS) - 1, int(rate / highest * len(BLOCKS)))]
        return line

    def line(self, schedule: Schedule | None) -> str:
        """Draw the run, and say the rate at the switch, at the decay's start and at the end."""
        said = []
        if schedule is not None and schedule.switch_step:
            switch = schedule.switch_step
            said.append(f"{self.at(switch):.2e} at the switch (step {switch + 1:,})")
        if self.style != "constant" and self.decay_start < self.num_steps:
            start = self.decay_start
            said.append(f"{self.at(start):.2e} when its decay starts (step {start + 1:,})")
        said.append(f"{self.at(self.num_steps - 1):.2e} at the last step ({self.num_steps:,})")
        first = f"{self.at(0):.2e} at step 1"
        return f"learning rate: {self.drawing()} {', '.join([first, *said])}"


def _left(style: str, done: float) -> float:
    if style == "linear":
        return 1.0 - done
    if style == "cosine":
        return 0.5 * (math.cos(math.pi * done) + 1.0)
    if style == "exponential":
        return float(2.0 * 0.5**done - 1.0)
    return 1.0 - math.sqrt(done)  # minus_sqrt
