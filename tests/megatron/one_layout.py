"""Gradients of the tiny model under one of Megatron's layouts or schedules, and their distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import TINY, VOCABULARY

LENGTH = 16
"""Latent positions."""
SAMPLES = 4
"""Samples that each data-parallel rank reads in a step."""


def recipe(tokenizer: Path, **changes: Any) -> dict[str, Any]:
    """``TINY`` with every loss of the router and with changes."""
    return {
        **TINY,
        "seq-length": LENGTH,
        "max-position-embeddings": LENGTH,
        "global-batch-size": SAMPLES,
        "moe-aux-loss-coeff": 0.1,
        "moe-z-loss-coeff": 0.01,
        "tokenizer-type": "SentencePieceTokenizer",
        "tokenizer-model": str(tokenizer),
        "use-distributed-optimizer": False,
        "rerun-mode": "disabled",  # it wants the training loop around each step
        "dataloader-type": "single",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }


def raw_tokens(bag_size: int) -> torch.Tensor:
    """[SAMPLES, K * (LENGTH + 1)] raw tokens, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, VOCABULARY, (SAMPLES, bag_size * (LENGTH + 1)), generator=generator)


def step(
    args: Any, models: list[Any], bag_size: int, tokens: torch.Tensor
) -> tuple[dict[str, torch.Tensor], list[dict[str, list[float]]]]:
    """One forward and backward pass over a rank's tokens: (gradients by name, reports)."""
    from one_step import forward_backward

    from tst_megatron.schedule import Phase, Schedule

    schedule = Schedule(
        phases=(Phase(bag_size=bag_size, first_step=0, num_steps=1),),
        num_latent_positions=LENGTH,
        global_batch_size=args.global_batch_size,
    )
    batches = [{"tokens": part} for part in tokens.split(args.micro_batch_size)]
    reports = forward_backward(args, models, schedule, [iter(batches) for _ in models])
    grads = {
        f"{chunk}.{name}": parameter.main_grad.clone()
        for chunk, model in enumerate(models)
        for name, parameter in model.module.named_parameters()
    }
    return grads, reports


def worst_error(grads: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """The largest |g - g_ref| / max(|g_ref|) of all parameters, which all must have a gradient."""
    assert grads.keys() == reference.keys()
    errors = []
    for name, expected in reference.items():
        largest = expected.abs().max()
        assert largest > 0, name
        errors.append(float((grads[name] - expected).abs().max() / largest))
    return max(errors)
