"""Ask a model for the probability of each scored token, a few passages at a time.

Shapes: B passages at once, T tokens of a passage, N scored tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tst_megatron.audit.items import NO_FOIL, Floats, Passage, Scores, Suite
from tst_megatron.audit.models.open_models import Model
from tst_megatron.audit.models.temperature import WIDEST, losses_at, lowest, tried

MOST_LOGITS = 2**24
"""Numbers of [N, V] in memory at once: 64 MiB in float32, of which a few copies exist."""
MOST_TOKENS = 4096
"""Of a batch, padding included."""
NUM_TOKENS_OF_TEMPERATURE = 2048
"""Scored tokens by which a model's best temperature is found."""

MOST_ROUNDS = 5
"""Of a search for it."""

FIELDS = ("loss", "matched_loss", "foil_loss", "entropy", "square", "top", "lead", "is_top")


def batches(passages: Sequence[Passage], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of passages of about one length, so that little is padding."""
    order = sorted(range(len(passages)), key=lambda at: (len(passages[at].ids), at))
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and stop - start < batch_size
            and len(passages[order[stop]].ids) * (stop - start + 1) <= MOST_TOKENS
        ):
            stop += 1
        yield order[start:stop]
        start = stop


def score(
    model: Model,
    suite: Suite,
    *,
    inverse_temperature: float,
    batch_size: int,
    advance: Callable[[int], None] = lambda num_passages: None,
) -> Scores:
    """Return what a model says of every scored token of a suite.

    Args:
        model: in memory.
        suite: its passages.
        inverse_temperature: that the matched losses are read at.
        batch_size: passages at once, at most.
        advance: told the passages done since its last call.

    Raises:
        ValueError: the model answers with what is no number.
    """
    starts = np.cumsum([0, *(len(each.positions) for each in suite.passages)])
    found = {name: np.full(int(starts[-1]), np.nan) for name in FIELDS}
    for numbers in batches(suite.passages, batch_size):
        passages = [suite.passages[at] for at in numbers]
        places = np.concatenate(
            [np.arange(starts[at], starts[at + 1]) for at in numbers] or [np.arange(0)]
        )
        for part, logits, targets, foils in _logits(model, passages):
            values = _values(logits, targets, foils, inverse_temperature)
            if not bool(torch.isfinite(values[0]).all()):
                raise ValueError(
                    f"{model.subject.folder}: gives NaN or infinite probabilities, although its "
                    "weights are numbers. It is damaged, or overflows in its type of numbers"
                )
            for name, value in zip(FIELDS, values, strict=True):
                found[name][places[part]] = value.double().cpu().numpy()
        advance(len(numbers))
    return Scores(
        **{name: found[name] for name in FIELDS if name != "is_top"},
        is_top=found["is_top"] > 0.5,
    )


def best_inverse_temperature(model: Model, suite: Suite, *, batch_size: int) -> float:
    """Return the inverse temperature at which a model's loss on a suite's first tokens is lowest.

    Args:
        model: in memory.
        suite: of natural text.
        batch_size: passages at once, at most.
    """
    passages, number = [], 0
    for passage in suite.passages:
        passages.append(passage)
        number += len(passage.positions)
        if number >= NUM_TOKENS_OF_TEMPERATURE:
            break
    # Read once: only the output layer is asked again at each round.
    read = [
        _hidden(model, [passages[at] for at in numbers])[:2]
        for numbers in batches(passages, batch_size)
    ]
    best, widest, is_fine = 1.0, WIDEST, False
    for _ in range(MOST_ROUNDS):
        inverses = tried(best, widest)
        losses: Floats = np.zeros(len(inverses))
        for hidden_NH, targets_N in read:
            for part in _parts(model, len(targets_N)):
                with torch.inference_mode():
                    logits_NV = model.logits(hidden_NH[part])
                    losses += losses_at(logits_NV, targets_N[part], inverses)
        best = lowest(inverses, losses)
        is_inside = inverses[0] < best < inverses[-1]
        if is_fine and is_inside:
            break
        if is_inside:
            # The next round is as wide as a few steps of this one.
            widest, is_fine = float((inverses[1] / inverses[0]) ** 1.5), True
    return best


def _logits(
    model: Model, passages: Sequence[Passage]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield the logits of scored tokens, some at a time, with their ids and those of their foils.

    The slice says which of all scored tokens of these passages they are.
    """
    hidden_NH, targets_N, foils_N = _hidden(model, passages)
    for part in _parts(model, len(targets_N)):
        with torch.inference_mode():
            logits_NV = model.logits(hidden_NH[part])
        yield part, logits_NV, targets_N[part], foils_N[part]


def _parts(model: Model, number: int) -> Iterator[slice]:
    """Yield slices of so many tokens as have few enough logits together."""
    size = max(1, MOST_LOGITS // model.network.config.vocab_size)
    for start in range(0, number, size):
        yield slice(start, start + size)


def _hidden(model: Model, passages: Sequence[Passage]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the logits of scored tokens are made of, with their ids and their foils."""
    longest = max(len(passage.ids) for passage in passages)
    ids_BT = torch.zeros(len(passages), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    rows: list[int] = []
    for row, passage in enumerate(passages):
        ids_BT[row, : len(passage.ids)] = torch.from_numpy(passage.ids)
        mask_BT[row, : len(passage.ids)] = 1
        rows += [row] * len(passage.positions)
    rows_N = torch.tensor(rows, dtype=torch.int64)
    columns_N = torch.from_numpy(np.concatenate([each.positions for each in passages]))
    targets_N = ids_BT[rows_N, columns_N].to(model.device)
    foils_N = torch.from_numpy(np.concatenate([each.foils for each in passages]))
    with torch.inference_mode():
        hidden_BTH = model.hidden(ids_BT.to(model.device), mask_BT.to(model.device))
        # The token at a place is foretold one place before it.
        hidden_NH = hidden_BTH[rows_N.to(model.device), columns_N.to(model.device) - 1]
    return hidden_NH, targets_N, foils_N.to(model.device)


def _values(
    logits_NV: Tensor, targets_N: Tensor, foils_N: Tensor, inverse_temperature: float
) -> tuple[Tensor, ...]:
    """Return the values of ``FIELDS``, each [N]."""
    right = logits_NV.gather(1, targets_N[:, None])[:, 0]
    if inverse_temperature == 1:
        matched = torch.logsumexp(logits_NV, dim=1) - right
    else:
        matched = torch.logsumexp(logits_NV * inverse_temperature, dim=1)
        matched = matched - right * inverse_temperature
    logs_NV = torch.log_softmax(logits_NV, dim=1)
    loss = -logs_NV.gather(1, targets_N[:, None])[:, 0]
    foil = -logs_NV.gather(1, foils_N.clamp_min(0)[:, None])[:, 0]
    foil = torch.where(foils_N == NO_FOIL, torch.full_like(foil, torch.nan), foil)
    top2, order = logs_NV.topk(2, dim=1)
    top2 = top2.exp()
    probabilities_NV = logs_NV.exp()
    entropy = -(probabilities_NV * logs_NV.clamp_min(-1e30)).sum(dim=1)
    square = probabilities_NV.square().sum(dim=1)
    is_top = (order[:, 0] == targets_N).float()
    return loss, matched, foil, entropy, square, top2[:, 0], top2[:, 0] - top2[:, 1], is_top
