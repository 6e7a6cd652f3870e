"""Comparisons made by hand, for what shows them; every number in them is invented."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tst_megatron.compare.results import (
    ArmSummary,
    Comparison,
    Curve,
    Difference,
    Downstream,
    Interval,
    Pair,
    RecordedRun,
    Spike,
)

NAN = math.nan
NUM_STEPS, SWITCH = 8000, 2400
TOKENS_PER_STEP, FLOPS_PER_STEP = 2048.0, 3.5e9
HOSTILE = '<b>x</b> & "q" $a_1$ \x1b[31m\u202e</svg><script>alert(1)</script>'


def losses(steps, final, bag_size=1, noise=0.0):
    """A made-up loss: flat while bags are read, then a power law, and a drop in the decay."""
    share = steps / NUM_STEPS
    start = SWITCH / NUM_STEPS if bag_size > 1 else 0
    since = np.maximum(share - start, 0.01)
    slope, drop = (0.12, 0.235) if bag_size > 1 else (0.28, 0.33)
    before_decay = drop * np.clip((1 - share) / 0.2, 0, 1)
    fallen = final + slope * (since**-0.45 - (1 - start) ** -0.45) + before_decay + noise
    return np.where((bag_size > 1) & (steps <= SWITCH), 4.46 - 0.2 * share + noise, fallen)


def run(name, arm, *, final=2.0, bag_size=1, seed=1, every=250, num_steps=NUM_STEPS, **changes):
    steps = np.arange(every, num_steps + 1, every)
    noise = np.random.default_rng((seed or 0) + 100 * bag_size).normal(0, 0.006, len(steps))
    noise[-1:] = 0  # So that a line ends at the loss of the table.
    bags = np.minimum(steps, SWITCH if bag_size > 1 else 0)
    training_steps = np.arange(1, num_steps + 1, 8)
    wobble = 0.08 * np.sin(training_steps * 1.7 + (seed or 0))
    next_token = Curve(
        steps=training_steps, values=losses(training_steps, final, bag_size) + wobble
    )
    training = {"lm loss": next_token}
    if bag_size > 1:
        of_bags, after = training_steps <= SWITCH, training_steps > SWITCH
        bag_loss = 5.1 + 1.2 * np.exp(-training_steps[of_bags] / 400) + wobble[of_bags]
        training = {
            "bag loss": Curve(steps=training_steps[of_bags], values=bag_loss),
            "lm loss": Curve(steps=training_steps[after], values=next_token.values[after]),
        }
    phases = ((bag_size, SWITCH), (1, num_steps - SWITCH))
    facts = {
        "name": name,
        "path": Path("/runs") / name.replace("\x1b", ""),
        "kind": "run folder",
        "arm": arm,
        "seed": seed,
        "num_steps": num_steps,
        "last_step": num_steps,
        "phases": phases if bag_size > 1 else ((1, num_steps),),
        "trunk": None,
        "training": training,
        "validation": Curve(steps=steps, values=losses(steps, final, bag_size, noise)),
        "block_files": {},
        "raw_tokens": (steps + (bag_size - 1) * bags) * TOKENS_PER_STEP,
        "flops": steps * FLOPS_PER_STEP,
        "hours": steps * (0.11 + 0.01 * (bag_size > 1)) / 3600,
        "numbers": numbers(bag_size),
        "device": "cpu",
    }
    return RecordedRun(**(facts | changes))


def numbers(bag_size=1):
    return {
        "raw tokens per second": 18123.0 * (1 + 0.6 * (bag_size > 1)),
        "TFLOP/s per device": 0.0317,
        "MFU": 0.412,
        "peak memory bytes": 1.5 * 2**30,
        "load balancing loss": 1.023,
        "parameters": 214_528.0,
        "active parameters": 181_760.0,
        "own hours": 0.2667,
    }


def interval(value, half=0.012, method="t over 3 pairs of seeds"):
    return Interval(value=value, low=value - half, high=value + half, method=method)


def unknown(value=NAN):
    return Interval(value=value, low=NAN, high=NAN, method="")


def arm(name, runs, *, final, bag_size=1, **changes):
    facts = {
        "name": name,
        "runs": tuple(runs),
        "final_step": NUM_STEPS,
        "final_loss": interval(final, 0.009),
        "spike": Spike(switch_step=SWITCH, height=1.234, length=617) if bag_size > 1 else None,
        "numbers": numbers(bag_size),
    }
    return ArmSummary(**(facts | changes))


def pair(name, baseline="baseline", *, gap=-0.2433, **changes):
    facts = {
        "arm": name,
        "baseline": baseline,
        "compared_at": (NUM_STEPS, NUM_STEPS),
        "gap": None if gap is None else interval(gap, 0.0177),
        "run_noise": 0.0061,
        "run_noise_source": "measured over 3 seeds of each arm",
        "crossing_step": interval(3012.0, 211.0),
        "equal_loss": {
            "steps": interval(1.62, 0.11),
            "raw tokens": interval(0.94, 0.07),
            "FLOPs": interval(1.61, 0.12),
            "hours": Interval(value=1.48, low=1.31, high=math.inf, method="t over 3 pairs"),
        },
        "equal_loss_said": (
            "The baseline's final loss of 1.9959 is reached by tst at step 4,938, read off between "
            "two evaluations."
        ),
        "verdict": "better",
        "sentence": (
            f"{name} is better than {baseline} at equal FLOPs: its next-token loss is lower by "
            f"{-(gap or 0):.4f} nats (95% interval 0.2256 to 0.2610, t over 3 pairs of seeds)."
        ),
    }
    return Pair(**(facts | changes))


DIFFERENCES = (
    Difference(
        what="bag size",
        values={"baseline": "1", "tst": "4 for 2,400 steps, then 1"},
        meaning="This is what is compared.",
        gravity="expected",
    ),
    Difference(
        what="raw tokens read",
        values={"baseline": "16.4M", "tst": "31.1M"},
        meaning="At equal FLOPs the arm with bags reads more text; that is part of the method.",
        gravity="matters",
    ),
)

DOWNSTREAM = (
    Downstream(
        task="arc_easy",
        metric="acc_norm",
        arm="tst",
        baseline="baseline",
        arm_score=0.4135,
        baseline_score=0.3891,
        difference=interval(0.0244, 0.0151, "paired bootstrap, 2,376 questions"),
        num_questions=2376,
        only_arm_right=203,
        only_baseline_right=145,
        p_value=0.00217,
    ),
)


def two_arms(num_seeds=3, **changes):
    """An arm with bags against ordinary training, some seeds of each, with downstream results."""
    seeds = range(1, num_seeds + 1)
    baseline = [run(f"baseline-{s}", "baseline", final=1.9959, seed=s) for s in seeds]
    tst = [run(f"tst-{s}", "tst", final=1.7526, bag_size=4, seed=s) for s in seeds]
    facts = {
        "baseline": "baseline",
        "arms": (
            arm("baseline", baseline, final=1.9959),
            arm("tst", tst, final=1.7526, bag_size=4),
        ),
        "differences": DIFFERENCES,
        "pairs": (pair("tst"),),
        "downstream": DOWNSTREAM,
        "notes": ("tst-2: 1 damaged line of metrics.jsonl was left out.",),
        "same": {
            "tokenizer": "5f0c12ab9d3e, by its hash",
            "held-out text": "90b1c2d3e4f5, by the hash of its tokens",
            "held-out positions": "256 sequences of 128 positions, by the size of an evaluation",
            "training text": "ab12cd34ef56: 1.0, by hashes and weights",
            "order of the text": "order version 2, units of 4 x 128 tokens, by the stream",
            "parameters": "214,528, counted",
        },
    }
    return Comparison(**(facts | changes))


def alone():
    """One arm with one run, so that there is nothing to compare."""
    only = arm("only", [run("only", "only", final=2.2)], final=2.2, final_loss=unknown(2.2))
    return Comparison(
        baseline="only", arms=(only,), differences=(), pairs=(), downstream=(), notes=()
    )


def nothing_known():
    """Two CSV files of which nothing is known but a handful of losses."""
    arms = []
    for name in ("a", "b"):
        steps = np.asarray([100, 200])
        bare = run(
            name,
            name,
            seed=None,
            kind="CSV",
            num_steps=200,
            last_step=200,
            training={},
            validation=Curve(steps=steps, values=np.asarray([3.5, 3.25])),
            raw_tokens=None,
            flops=None,
            hours=None,
            numbers={},
            device="",
        )
        arms.append(arm(name, [bare], final=3.25, final_step=200, final_loss=unknown(), numbers={}))
    lost = pair(
        "b",
        "a",
        compared_at=(200, 200),
        gap=None,
        run_noise=NAN,
        run_noise_source="",
        crossing_step=None,
        equal_loss={},
        equal_loss_said="The losses never meet.",
        verdict="says nothing",
        sentence="This says nothing yet: no tokenizer is recorded.",
    )
    differs = Difference(
        what="tokenizer",
        values={"a": "not recorded", "b": "not recorded"},
        meaning="Losses of different tokenizers cannot be compared.",
        gravity="forbids",
    )
    return Comparison(
        baseline="a",
        arms=tuple(arms),
        differences=(differs,),
        pairs=(lost,),
        downstream=(),
        notes=(),
    )


def hostile():
    """Names that would be markup, mathematics or orders to a terminal where they are not text."""
    name = HOSTILE
    baseline = arm(
        "_" + name, [run(name + "1", "_" + name, training={})], final=2.0, numbers=numbers()
    )
    tst = arm(name, [run(name, name, final=1.8, bag_size=4)], final=1.8, bag_size=4)
    return Comparison(
        baseline="_" + name,
        arms=(baseline, tst),
        differences=(
            Difference(
                what=name, values={"_" + name: name, name: name}, meaning=name, gravity="matters"
            ),
        ),
        pairs=(pair(name, "_" + name, equal_loss_said=name, sentence=name, run_noise_source=name),),
        downstream=tuple(
            replace(each, task=name, metric=name, arm=name, baseline="_" + name)
            for each in DOWNSTREAM
        ),
        notes=(name,),
    )


def not_finite():
    """NaN and infinity wherever a number may be one."""
    comparison = two_arms(1)
    first, second = comparison.arms
    lost = {name: NAN for name in first.numbers}
    second = replace(
        second,
        final_loss=unknown(),
        numbers=lost,
        spike=Spike(switch_step=SWITCH, height=NAN, length=None),
        runs=(
            replace(
                second.runs[0],
                numbers=lost,
                flops=np.full(32, NAN),
                hours=np.full(32, np.inf),
                facts={"learning rate": NAN, "path": Path("x"), "shape": (1, 2)},
            ),
        ),
    )
    infinite = Interval(value=math.inf, low=2.5, high=math.inf, method="never reached")
    lost_pair = pair(
        "tst",
        gap=NAN,
        run_noise=NAN,
        crossing_step=unknown(),
        equal_loss={"steps": infinite, "hours": unknown(1.2)},
        verdict="says nothing",
        sentence="This says nothing yet.",
    )
    return replace(
        comparison,
        arms=(first, second),
        pairs=(lost_pair,),
        downstream=(replace(DOWNSTREAM[0], arm_score=NAN, difference=unknown(), p_value=NAN),),
    )


def eight_arms(num_seeds=1):
    """Eight arms: as many colours as there are."""
    names = [f"k{k}-r{r}" for k in (2, 4, 6, 8) for r in (0.2, 0.4)][:7]
    arms, pairs = [], []
    runs = [run(f"base-{s}", "baseline", final=1.9959, seed=s) for s in range(num_seeds)]
    arms.append(arm("baseline", runs, final=1.9959))
    for number, name in enumerate(names):
        final = 1.9 - 0.03 * number
        runs = [
            run(f"{name}-s{s}", name, final=final, bag_size=4, seed=s) for s in range(num_seeds)
        ]
        arms.append(arm(name, runs, final=final, bag_size=4))
        pairs.append(pair(name, gap=-0.05 - 0.03 * number))
    return two_arms(1, arms=tuple(arms), pairs=tuple(pairs), downstream=())


def branches():
    """Two lengths of decay from one trunk; the first run is the trunk itself."""
    trunk = run("long", "long", final=1.7526, bag_size=4)
    short = run("short", "short", bag_size=4, trunk=("long", 4000), num_steps=6000)
    short = replace(
        short,
        validation=decayed(trunk.validation),
        training={
            "bag loss": trunk.training["bag loss"],
            "lm loss": decayed(trunk.training["lm loss"]),
        },
    )
    arms = (
        arm("long", [trunk], final=1.7526, bag_size=4),
        arm("short", [short], final=1.8711, bag_size=4, final_step=6000),
    )
    shorter = pair("short", "long", compared_at=(6000, 8000), gap=0.1185, verdict="worse")
    return two_arms(1, baseline="long", arms=arms, pairs=(shorter,), downstream=())


def decayed(curve, start=4000, end=6000):
    """A curve as it is up to a step, and from there on a decay of its own."""
    steps = curve.steps[curve.steps <= end]
    drop = 0.2 * np.clip((steps - start) / (end - start), 0, 1)
    return Curve(steps=steps, values=curve.values[: len(steps)] - drop)


ALL = {
    "two arms": two_arms,
    "one arm alone": alone,
    "nothing known": nothing_known,
    "hostile names": hostile,
    "not finite": not_finite,
    "eight arms": eight_arms,
    "branches": branches,
}
"""What makes each of them."""
