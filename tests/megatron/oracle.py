"""A trainer written a second time, from the definitions: what real runs are compared with.

Plain PyTorch over a model of transformers, with eager attention and ``torch.optim.AdamW``. It is
independent of Megatron, of this project and of the CPU host: it runs in a process of its own, which
ends with an error if one of them was imported. It shares with a run the weights that both start
from, the ids of the raw tokens, and the numbers of the recipe. Bags, their mean, their targets and
weights, the mask behind the end of a document, losses, schedules, accumulation over micro-batches,
balancing of experts, clipping and evaluation are written here anew, slot by slot.

Sources: the paper (arXiv 2605.06546), sections 3.1, 3.2 and 4 and appendix D; the loss of balancing
is that of Switch Transformer (arXiv 2101.03961), the one of logits that of ST-MoE (arXiv
2202.08906). Two choices that the paper leaves open are the project's, as its documentation states
them: the last bag of a sequence has a whole bag of targets, and a latent position counts once,
however many of its slots are masked.

Run as ``oracle.py INPUT.json OUTPUT.json``. The input lists the arms, each with the fields of
``Arm``; the output has what ``train`` returns for each of them.

Shapes: B micro-batch, T raw tokens per sequence, L latent positions, K tokens per bag, V
vocabulary, E experts, N latent positions of a micro-batch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One run: the numbers of its recipe, and its text."""

    model: str
    """Folder in Hugging Face format that the weights come from."""
    samples: list[list[list[int]]]
    """The raw tokens of each step's sequences, look-ahead included."""
    held_out: list[list[int]]
    """The raw tokens of the sequences of one evaluation, one of look-ahead included."""
    bag_sizes: list[int]
    """Of each step."""
    end_of_document: int
    micro_batch_size: int
    slot_weights: str
    """``uniform`` or ``1/i``."""
    counts_over_all_micro_batches: bool
    """Divide once by all latent positions of a step that count, and not in each micro-batch."""
    resets_optimizer: bool
    """Start the optimizer anew with the first step of ordinary training."""
    peak_learning_rate: float
    min_learning_rate: float
    num_warmup_steps: int
    num_decay_steps: int
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    max_gradient_norm: float
    balancing_coefficient: float
    logit_coefficient: float
    num_steps_between_evaluations: int


class Losses(NamedTuple):
    """What a micro-batch adds to a step."""

    loss_sum: Tensor
    """Over the latent positions that count."""
    num_counted: int
    num_positions: int
    balancing: Tensor
    """[layers with experts] not multiplied by its coefficient."""
    logits: Tensor
    """[layers with experts] likewise."""


def bags_of(tokens_BT: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
    """Bags [B, L, K] that are read, and the bags that follow them, slot by slot."""
    num_positions = tokens_BT.shape[1] // bag_size - 1
    inputs, targets = [], []
    for position in range(num_positions):
        first = position * bag_size
        inputs.append([tokens_BT[:, first + slot] for slot in range(bag_size)])
        targets.append([tokens_BT[:, first + bag_size + slot] for slot in range(bag_size)])
    return tuple(
        torch.stack([torch.stack(bag, dim=-1) for bag in bags], dim=1) for bags in (inputs, targets)
    )


def weights_of(tokens_BT: Tensor, bag_size: int, arm: Arm) -> Tensor:
    """[B, L, K] the weight of each target: none where a document ended just before it."""
    weights = torch.zeros_like(bags_of(tokens_BT, bag_size)[1], dtype=torch.float32)
    for sequence, tokens in enumerate(tokens_BT.tolist()):
        for index in range(bag_size, len(tokens)):
            position, slot = divmod(index - bag_size, bag_size)
            if tokens[index - 1] != arm.end_of_document:
                weight = {"uniform": 1.0, "1/i": 1.0 / (slot + 1)}[arm.slot_weights]
                weights[sequence, position, slot] = weight
    return weights


def position_losses(logits_BLV: Tensor, targets_BLK: Tensor, weights_BLK: Tensor) -> Tensor:
    """[B, L] the weighted mean of the cross-entropies of a bag's tokens; 0 where none counts."""
    log_probabilities = logits_BLV.log_softmax(dim=-1)
    loss_sum = torch.zeros(targets_BLK.shape[:2])
    for slot in range(targets_BLK.shape[2]):
        chosen = log_probabilities.gather(-1, targets_BLK[:, :, slot : slot + 1]).squeeze(-1)
        loss_sum = loss_sum - weights_BLK[:, :, slot] * chosen
    total = weights_BLK.sum(dim=-1)
    return torch.where(total > 0, loss_sum / total.clamp_min(1e-9), torch.zeros(()))


def balancing_loss(router_logits_NE: Tensor, num_chosen: int) -> Tensor:
    """E times the sum over experts of the share of choices times the mean probability."""
    num_positions, num_experts = router_logits_NE.shape
    probabilities = router_logits_NE.softmax(dim=-1)
    chosen = probabilities.topk(num_chosen, dim=-1).indices
    loss = torch.zeros(())
    for expert in range(num_experts):
        share = (chosen == expert).sum() / (num_positions * num_chosen)
        loss = loss + share * probabilities[:, expert].mean()
    return num_experts * loss


def losses_of(model: PreTrainedModel, tokens_BT: Tensor, bag_size: int, arm: Arm) -> Losses:
    """One micro-batch through the model."""
    inputs_BLK, targets_BLK = bags_of(tokens_BT, bag_size)
    weights_BLK = weights_of(tokens_BT, bag_size, arm)
    table = model.get_input_embeddings()
    vectors = sum(table(inputs_BLK[:, :, slot]) for slot in range(bag_size)) / bag_size
    has_experts = hasattr(model.config, "num_experts")
    more = {"output_router_logits": True} if has_experts else {}
    output = model.model(
        inputs_embeds=vectors,
        position_ids=torch.arange(vectors.shape[1]).unsqueeze(0),
        use_cache=False,
        **more,
    )
    losses_BL = position_losses(model.lm_head(output.last_hidden_state), targets_BLK, weights_BLK)
    counts_BL = (weights_BLK > 0).any(dim=-1)
    routers = output.router_logits if has_experts else ()
    balancing = [balancing_loss(each, model.config.num_experts_per_tok) for each in routers]
    logits = [each.logsumexp(dim=-1).square().mean() for each in routers]
    return Losses(
        loss_sum=(losses_BL * counts_BL).sum(),
        num_counted=int(counts_BL.sum()),
        num_positions=counts_BL.numel(),
        balancing=torch.stack(balancing) if balancing else torch.zeros(0),
        logits=torch.stack(logits) if logits else torch.zeros(0),
    )


def objective(parts: list[Losses], arm: Arm) -> Tensor:
    """What a step minimises: the loss of the text and, for each layer, those of its router."""
    total = torch.zeros(())
    num_counted = sum(part.num_counted for part in parts)
    for part in parts:
        of_router = (
            arm.balancing_coefficient * part.balancing.sum()
            + arm.logit_coefficient * part.logits.sum()
        )
        if arm.counts_over_all_micro_batches:
            total = total + (part.loss_sum + part.num_positions * of_router) / num_counted
        else:
            total = total + (part.loss_sum / part.num_counted + of_router) / len(parts)
    return total


def learning_rate(step: int, arm: Arm) -> float:
    """Of the update that follows ``step`` earlier ones: warm-up, a plateau, a linear decay."""
    num_steps = len(arm.bag_sizes)
    if step < arm.num_warmup_steps:
        return arm.peak_learning_rate * step / arm.num_warmup_steps
    num_decayed = max(0, step - (num_steps - arm.num_decay_steps))
    height = arm.peak_learning_rate - arm.min_learning_rate
    return arm.min_learning_rate + height * (1 - num_decayed / arm.num_decay_steps)


def new_optimizer(model: PreTrainedModel, arm: Arm) -> torch.optim.AdamW:
    """AdamW that has not stepped; weights of norms do not decay."""
    matrices = [each for each in model.parameters() if each.dim() > 1]
    vectors = [each for each in model.parameters() if each.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": arm.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=arm.betas,
        eps=arm.epsilon,
    )


@torch.no_grad()
def evaluate(model: PreTrainedModel, arm: Arm) -> float:
    """The next-token loss of the held-out text, over the positions that count."""
    batches = torch.tensor(arm.held_out).split(arm.micro_batch_size)
    parts = [losses_of(model, tokens_BT, 1, arm) for tokens_BT in batches]
    return float(sum(part.loss_sum for part in parts) / sum(part.num_counted for part in parts))


def train(arm: Arm) -> dict[str, Any]:
    """Train an arm; what each step and each evaluation would log."""
    model = AutoModelForCausalLM.from_pretrained(
        arm.model,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )
    optimizer = new_optimizer(model, arm)
    rows: list[dict[str, float]] = []
    evaluations: dict[int, float] = {}
    for step, (samples, bag_size) in enumerate(zip(arm.samples, arm.bag_sizes, strict=True)):
        is_switch = bag_size == 1 and step > 0 and arm.bag_sizes[step - 1] > 1
        if is_switch and arm.resets_optimizer:
            optimizer = new_optimizer(model, arm)
        batches = torch.tensor(samples).split(arm.micro_batch_size)
        parts = [losses_of(model, tokens_BT, bag_size, arm) for tokens_BT in batches]
        optimizer.zero_grad()
        objective(parts, arm).backward()
        loss_sum = torch.stack([part.loss_sum for part in parts]).sum()
        row = {
            "loss": float(loss_sum.detach()) / sum(part.num_counted for part in parts),
            "grad-norm": float(clip_grad_norm_(model.parameters(), arm.max_gradient_norm)),
            "learning-rate": learning_rate(step, arm),
        }
        if len(parts[0].balancing):
            row["load_balancing_loss"] = float(torch.stack([p.balancing for p in parts]).mean())
            row["z_loss"] = float(torch.stack([p.logits for p in parts]).mean())
        for group in optimizer.param_groups:
            group["lr"] = row["learning-rate"]
        optimizer.step()
        rows.append(row)
        if (step + 1) % arm.num_steps_between_evaluations == 0:
            evaluations[step + 1] = evaluate(model, arm)
    return {"steps": rows, "evaluations": evaluations}


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    arms = [Arm(**arm) for arm in json.loads(source.read_text())]
    target.write_text(json.dumps([train(arm) for arm in arms]))
    foreign = {"megatron", "tst_megatron"} & {name.partition(".")[0] for name in sys.modules}
    assert not foreign, foreign


if __name__ == "__main__":
    main()
