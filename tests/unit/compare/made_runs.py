"""Run folders made by hand for the tests of ``compare``: only the files that it reads."""

import json
import math
from pathlib import Path

import numpy as np
import yaml

L, BATCH = 128, 16
POSITIONS_PER_STEP = L * BATCH


def recipe(phases, **keys):
    num_steps = sum(steps for _, steps in phases)
    return {
        "train-iters": num_steps,
        "seq-length": L,
        "global-batch-size": BATCH,
        "micro-batch-size": BATCH,
        "eval-iters": 4,
        "hidden-size": 64,
        "num-layers": 3,
        "lr": "4e-3",
        "lr-decay-style": "WSD",
        "lr-wsd-decay-iters": num_steps // 5,
        "adam-beta2": 0.95,
        "seed": 1234,
        "profile": "cpu",
        "data": {"text": 1.0},
        "tst": {
            "stream-unit-bags": 4,
            "inputs": "bags",
            "targets": "bags",
            "reset-optimizer": False,
        },
        "phases": [list(phase) for phase in phases],
        "given by the profile": {"transformer-impl": "local"},
        "training text": ["97a29487339b4a92607841ea79de24b08e3b905516e5919f5d1f08d1a48fc9bc"],
        **keys,
    }


def facts(resolved, *, num_sequences=64, **changes):
    """What a start records beside ``metrics.jsonl``."""
    return {
        "format": 1,
        "stream": {
            "order version": 2,
            "seed": resolved["seed"],
            "seq-length": L,
            "tst.stream-unit-bags": 4,
            "global-batch-size": BATCH,
            "tokenizer": "aaaabbbbccccdddd",
        },
        "held-out": {
            "validation": {
                "sha256": ["1111222233334444"],
                "sequences": num_sequences,
                "latent positions": L,
            }
        },
        "parameters": {"total": 300_000, "active": 300_000, "embedding": 65_536},
        "FLOPs per step": 3.0e9,
        "world size": 1,
        "device": "cpu",
        **changes,
    }


class Made:
    """A run folder; its methods add records and return it."""

    def __init__(self, path: Path, phases=((1, 1000),), *, num_sequences=64, **keys):
        self.path = path
        self.phases = phases
        self.resolved = recipe(phases, **keys)
        self.num_sequences = num_sequences
        path.mkdir(parents=True)
        (path / "resolved.yaml").write_text(yaml.safe_dump(self.resolved))
        self.facts()

    @property
    def metrics(self):
        return self.path / "metrics.jsonl"

    def facts(self, **changes):
        said = facts(self.resolved, num_sequences=self.num_sequences, **changes)
        (self.path / "facts.json").write_text(json.dumps(said))
        return self

    def without_facts(self):
        (self.path / "facts.json").unlink()
        return self

    def lines(self, *lines):
        with self.metrics.open("a") as file:
            file.writelines(line + "\n" for line in lines)
        return self

    def validation(self, losses):
        """Add evaluations: step -> loss."""
        rows = [
            {"event": "validation", "step": step, "lm loss validation": loss}
            for step, loss in losses.items()
        ]
        return self.lines(*map(json.dumps, rows))

    def steps(self, first, last, *, seconds=2.0, loss=lambda step: 2.0, **values):
        switch = sum(steps for size, steps in self.phases if size > 1)
        rows = []
        for step in range(first, last + 1):
            name = "bag loss" if step <= switch else "lm loss"
            row = {"event": "step", "step": step, name: loss(step), "step seconds": seconds}
            rows.append(json.dumps({**row, "TFLOP/s per device": 0.0015, **values}))
        return self.lines(*rows)

    def blocks(self, step, loss_sum, num_positions=None):
        """Keep the losses of an evaluation by sequence, and log their mean."""
        loss_sum = np.asarray(loss_sum, np.float64)
        if num_positions is None:
            num_positions = np.full(len(loss_sum), L)
        (self.path / "evaluations").mkdir(exist_ok=True)
        np.savez_compressed(
            self.path / "evaluations" / f"validation-{step:07d}.npz",
            loss_sum=loss_sum,
            num_positions=np.asarray(num_positions, np.int64),
        )
        return self.validation({step: float(loss_sum.sum() / np.sum(num_positions))})


def falling(steps, *, start=4.5, end=2.0, until=None):
    """Step -> a loss that falls on a straight line over the logarithm of the steps."""
    last = until or steps[-1]
    return {
        step: start + (end - start) * math.log(step / steps[0]) / math.log(last / steps[0])
        for step in steps
    }
