"""The learning rate of every step, and schedules of it that cannot be meant."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import dataclass

from tst_megatron.schedule import Schedule

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Letters of the drawing, each the largest rate of its share of the steps."""

JUMP = 1.5
"""A change beyond this multiple of the largest step of the warm-up and of the decay is a jump."""


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
        """The schedule that the keys say.

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
        """The last step at the largest rate before a decay begins."""
        start = self.end - self.decay if self.style == "WSD" else math.ceil(self.warmup)
        return max(0, start)

    def at(self, step: int) -> float:
        """The rate of the step that follows ``step`` completed ones."""
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
        """How much is left of the difference between the largest and the smallest rate."""
        if self.style == "WSD":
            done = (step - (self.end - self.decay)) / max(1, self.decay)
            return 1.0 if done <= 0 else _left(self.decay_style, done)
        return _left(self.style, (step - self.warmup) / (self.end - self.warmup))

    def drawing(self) -> str:
        """The whole run in one line of blocks, low to high."""
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
        """The drawing, with the rates that decide: at the switch, at the decay's start, at the end.

        Args:
            schedule: of the phases, if there is one.
        """
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


def learning_rate_problems(
    values: argparse.Namespace, given: Collection[str | None]
) -> tuple[list[str], LearningRate | None]:
    """Schedules that no start survives, or that jump, or whose decay cannot be meant.

    Args:
        values: what the recipe's keys came to.
        given: destinations of the keys that the recipe has.

    Returns:
        (problems, the schedule; None where its numbers make none).
    """
    if not _is_complete(values):
        return [], None
    problems = _spelling_problems(values, given)
    rate = LearningRate.of(values)
    problems += _order_problems(rate, values)
    if not problems:
        problems = _length_problems(rate, values)
    if not problems:
        problems = _jump_problems(rate)
    return problems, None if problems else rate


def _is_complete(values: argparse.Namespace) -> bool:
    numbers = [
        *(values.lr, values.min_lr, values.lr_warmup_init, values.lr_warmup_iters),
        *(values.lr_warmup_fraction or 0.0, values.lr_wsd_decay_iters or 0),
    ]
    lengths = [values.train_iters, values.lr_decay_iters or values.train_iters]
    are_numbers = all(number is not None and math.isfinite(number) for number in numbers)
    return are_numbers and min(numbers) >= 0 and all(length and length > 0 for length in lengths)


def _spelling_problems(values: argparse.Namespace, given: Collection[str | None]) -> list[str]:
    problems = [
        f"{name.replace('_', '-')}: phases are counted in steps. Use "
        f"{name.replace('_samples', '_iters').replace('_', '-')}"
        for name in ("lr_warmup_samples", "lr_decay_samples", "lr_wsd_decay_samples")
        if name in given
    ]
    if values.lr_warmup_fraction is not None and values.lr_warmup_iters:
        problems.append("lr-warmup-fraction: lr-warmup-iters says the same thing. Give one of them")
    if values.lr_decay_style == "WSD" and not values.lr_wsd_decay_iters:
        problems.append(
            "lr-wsd-decay-iters: lr-decay-style WSD needs the steps of its decay. Give them, or "
            "use constant"
        )
    return problems


def _order_problems(rate: LearningRate, values: argparse.Namespace) -> list[str]:
    problems = []
    if rate.smallest > rate.largest:
        problems.append(f"min-lr: {rate.smallest:g} is above lr {rate.largest:g}. Lower it")
    if rate.first > rate.largest:
        problems.append(
            f"lr-warmup-init: {rate.first:g} is above lr {rate.largest:g}. Lower it: a warm-up "
            "rises"
        )
    if values.decoupled_min_lr is not None and values.decoupled_lr is None:
        problems.append("decoupled-min-lr: has no effect without decoupled-lr. Give both")
    elif (values.decoupled_min_lr or 0) > (values.decoupled_lr or math.inf):
        problems.append(
            f"decoupled-min-lr: {values.decoupled_min_lr:g} is above decoupled-lr "
            f"{values.decoupled_lr:g}. Lower it"
        )
    return problems


def _length_problems(rate: LearningRate, values: argparse.Namespace) -> list[str]:
    """Warm-up and decay together, in whatever key the steps were given."""
    by = "lr-warmup-iters" if values.lr_warmup_fraction is None else "lr-warmup-fraction"
    warmup, end = math.ceil(rate.warmup), rate.end
    if rate.warmup >= min(end, rate.num_steps):
        steps = min(end, rate.num_steps)
        return [
            f"{by}: {warmup:,} of the schedule's {steps:,} steps leave none for the rest. Lower it"
        ]
    if rate.style == "WSD" and rate.decay > end:
        return [
            f"lr-wsd-decay-iters: {rate.decay:,} of the schedule's {end:,} steps leave none for "
            "the rest. Lower it"
        ]
    if rate.style == "WSD" and rate.warmup + rate.decay > end:
        return [
            f"lr-wsd-decay-iters: a warm-up of {warmup:,} steps and a decay of {rate.decay:,} do "
            f"not fit into {end:,}: the rate would fall from {rate.at(warmup):.2e} at step "
            f"{warmup + 1:,} to {rate.at(warmup + 1):.2e} at the next. Lower one of the two"
        ]
    if rate.style == "WSD" and rate.decay_start >= rate.num_steps:
        return [
            f"lr-decay-iters: the decay would begin after step {rate.decay_start:,}, and the run "
            f"ends at step {rate.num_steps:,}. Lower lr-decay-iters, or use lr-decay-style constant"
        ]
    if end < rate.num_steps and rate.style != "constant" and rate.smallest == 0:
        return [
            f"lr-decay-iters: the rate is 0 after step {end + 1:,} of {rate.num_steps:,}, and a "
            "step at 0 trains nothing. Raise it to train-iters, or give min-lr"
        ] * (end + 1 < rate.num_steps)
    return []


def _jump_problems(rate: LearningRate) -> list[str]:
    """A rate that changes more between two steps than its warm-up and its decay ever do.

    It can only jump where one part of the schedule follows another, or in a decay of a step or two.
    """
    warmup = (0, math.floor(rate.warmup))
    decay = (max(rate.decay_start, math.ceil(rate.warmup)), min(rate.end, rate.num_steps - 1))
    usual = max(_largest_change(rate, *warmup), _largest_change(rate, *decay))
    allowed = min(max(JUMP * usual, 0.02 * rate.largest), 0.5 * rate.largest)
    seams = {math.floor(rate.warmup), math.ceil(rate.warmup), decay[0], decay[1] - 1, rate.end}
    for step in sorted(seams):
        if not max(1, rate.warmup) <= step < rate.num_steps - 1:
            continue
        before, after = rate.at(step), rate.at(step + 1)
        if abs(after - before) > allowed:
            return [
                f"lr-decay-style: the rate would jump from {before:.2e} at step {step + 1:,} to "
                f"{after:.2e} at the next. Change lr-warmup-iters, lr-decay-iters, "
                "lr-wsd-decay-iters or min-lr, so that it changes in more steps"
            ]
    return []


def _largest_change(rate: LearningRate, first: int, last: int) -> float:
    """Between two steps that follow each other; curves are steepest at an end or in the middle."""
    middle = (first + last) // 2
    pairs = [step for step in (first, middle, last - 1) if first <= step < last]
    return max((abs(rate.at(step + 1) - rate.at(step)) for step in pairs), default=0.0)


def learning_rate_warnings(rate: LearningRate, schedule: Schedule | None) -> list[str]:
    """What is odd about a schedule and may be meant.

    Args:
        rate: a schedule without a problem.
        schedule: of the phases, if there is one.
    """
    warnings = []
    last = rate.num_steps - 1
    if rate.style not in ("constant", "inverse-square-root") and rate.end > rate.num_steps:
        warnings.append(
            f"lr-decay-iters: the decay is made for {rate.end:,} steps and the run has "
            f"{rate.num_steps:,}, so it ends at {rate.at(last):.2e} instead of {rate.smallest:.2e}"
        )
    if rate.style != "constant" and rate.end + 1 < rate.num_steps:
        warnings.append(
            f"lr-decay-iters: the decay is done at step {rate.end + 1:,}, and the last "
            f"{rate.num_steps - rate.end - 1:,} steps have {rate.smallest:.2e}"
        )
    if rate.style != "constant" and rate.decay_start >= last > 0:
        warnings.append(
            "lr-decay-style: no decay is left in the run: the last step still has the largest "
            "rate. Give it steps, or use constant"
        )
    if schedule is None or not schedule.switch_step:
        return warnings
    switch = schedule.switch_step
    if switch < rate.warmup:
        warnings.append(
            f"tst: the switch comes within the warm-up of the learning rate (step {switch:,} of "
            f"{math.ceil(rate.warmup):,})"
        )
    if rate.style == "WSD" and switch > rate.decay_start:
        warnings.append(
            f"tst: the switch comes within the decay of the learning rate, at {rate.at(switch):.2e}"
        )
    return warnings
