"""One training step as Megatron's schedules call it: raw tokens -> bags -> model -> loss.

Shapes: B micro-batch, T raw tokens per sequence, L latent positions, K tokens per bag (paper: s).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tst_megatron.megatron import loop, names, ranks
from tst_megatron.model.bags import IGNORED, fold, ignore_after
from tst_megatron.schedule import Phase, Schedule
from tst_megatron.training.report.metrics_file import BAG_LOSS, LM_LOSS

_EVALUATION = Phase(bag_size=1, first_step=0, num_steps=0)
"""Evaluation is next-token, whatever the phase of training."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of the model for one micro-batch."""

    tokens: Tensor
    """[B, L, K] bags, or [B, L] tokens where a position reads one."""
    targets: Tensor
    """[B, L, K] next bags, -100 in ignored slots; or [B, L] where a position predicts one token."""
    position_ids: Tensor
    """[B, L] latent positions."""
    loss_mask: Tensor
    """[B, L] fp32: 1 where a latent position has a target."""


def make_batch(tokens_BT: Tensor, phase: Phase, *, masked_after: int | None = None) -> Batch:
    """Cut a micro-batch of raw tokens for a phase; bag size 1 gives Megatron's own shapes.

    Args:
        tokens_BT: [B, T] raw tokens with their look-ahead, as ``fold`` takes them.
        phase: says what a latent position reads and predicts.
        masked_after: the end-of-document id, if targets that follow it are not to count.
    """
    tokens, targets = fold(tokens_BT, num_inputs=phase.num_inputs, num_targets=phase.num_targets)
    counted = targets if masked_after is None else ignore_after(tokens_BT, targets, masked_after)
    loss_mask_BL = (counted != IGNORED).any(dim=-1).float()
    batch, num_latent_positions, _ = tokens.shape
    positions = torch.arange(num_latent_positions, device=tokens_BT.device).expand(batch, -1)
    if phase.num_inputs == 1:
        tokens = tokens.squeeze(-1)
    if phase.num_targets == 1:
        # Megatron's loss takes every label; the mask alone decides what counts.
        counted = targets.squeeze(-1)
    return Batch(tokens.contiguous(), counted.contiguous(), positions, loss_mask_BL)


def on_this_context_parallel_rank(batch: Batch) -> Batch:
    """Return the part of a batch that this rank works on.

    The batch is cut after folding: by latent positions, not by tokens.

    A target stays with its position, also where the next bag itself is on another rank, and
    position ids count from the start of the whole sequence.
    """
    fields = [field.name for field in dataclasses.fields(batch)]
    whole = {name: getattr(batch, name) for name in fields}
    return Batch(**ranks.slices_of_this_context_parallel_rank(whole))


class TakesLosses(Protocol):
    """A collector of the losses of an evaluation."""

    def add(
        self, position_ids_BL: Tensor, targets_BL: Tensor, loss_mask_BL: Tensor, losses_BL: Tensor
    ) -> None:
        """Take in a micro-batch: where its positions are, their targets, mask and losses."""


def make_forward_step(
    schedule: Schedule, held_out: TakesLosses | None = None
) -> Callable[..., Any]:
    """Return the forward step of a run: the phase decides the bag size, and nothing else changes.

    The phase follows from Megatron's own count of completed steps. Evaluation is next-token in both
    phases. With ``overlap-moe-expert-parallel-comm`` Megatron asks for a schedule plan, whose nodes
    embed and compute the loss through the same model.

    Args:
        schedule: of the run.
        held_out: takes the losses of evaluations.
    """

    def forward_step(
        data_iterator: Iterator[dict[str, Tensor]] | None,
        model: Any,
        return_schedule_plan: bool = False,
    ) -> Any:
        # The plan of the same computation, which Megatron then runs piece by piece.
        compute = model.build_schedule_plan if return_schedule_plan else model
        args = names.get_args()
        phase = schedule.phase_at(args.curr_iteration) if model.training else _EVALUATION
        _require_no_heads(phase, args.mtp_num_layers)
        if not ranks.holds_a_batch(names.get_attr_wrapped_model(model, "vp_stage")):
            # A stage in the middle works on the hidden states that it was sent.
            return compute(None, None, None), None
        timers = names.get_timers()
        timers("batch-generator", log_level=2).start()
        micro_batch = args.micro_batch_size if model.training else args.eval_micro_batch_size
        num_raw_tokens = schedule.raw_tokens_per_sample(phase)
        tokens_BT = read_raw_tokens(data_iterator, (micro_batch, num_raw_tokens))
        end_of_document = loop.end_of_document_id() if args.eod_mask_loss else None
        batch = make_batch(tokens_BT, phase, masked_after=end_of_document)
        batch = on_this_context_parallel_rank(batch)
        timers("batch-generator").stop()
        output = compute(
            batch.tokens,
            batch.position_ids,
            None,
            labels=batch.targets,
            loss_mask=batch.loss_mask,
        )
        if held_out is not None and not model.training:
            return output, functools.partial(_held_out_loss, batch, held_out)
        name = BAG_LOSS if phase.is_superposition else LM_LOSS
        return output, functools.partial(loss_func, batch.loss_mask, name)

    return forward_step


def _require_no_heads(phase: Phase, num_heads: int | None) -> None:
    # Refused before the run; a head would roll the slots of a bag and never say so.
    assert not (phase.is_superposition and num_heads), "multi-token prediction of bags"


def read_raw_tokens(
    data_iterator: Iterator[dict[str, Tensor]] | None, shape: tuple[int, int]
) -> Tensor:
    """Return the next micro-batch of raw tokens: nothing else crosses the tensor-parallel group.

    Args:
        data_iterator: on tensor-parallel rank 0; None on the others, which have no data.
        shape: (B, T), known on every rank from the phase.
    """
    device = ranks.current_device()
    if ranks.tensor_parallel_rank() == 0:
        assert data_iterator is not None
        tokens_BT = next(data_iterator)["tokens"].to(device, non_blocking=True)
        assert tokens_BT.shape == shape, f"read {tuple(tokens_BT.shape)} raw tokens, not {shape}"
    else:
        tokens_BT = torch.empty(shape, dtype=torch.int64, device=device)
    return ranks.broadcast_from_tensor_parallel_rank_0(tokens_BT)


def _held_out_loss(
    batch: Batch, held_out: TakesLosses, losses_BL: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    # Before the schedule, which divides in place.
    held_out.add(batch.position_ids, batch.targets, batch.loss_mask, losses_BL)
    return loss_func(batch.loss_mask, LM_LOSS, losses_BL)


def loss_func(
    loss_mask_BL: Tensor, name: str, losses_BL: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum the losses of a micro-batch, for Megatron's schedules to divide.

    Latent positions are what is counted in both phases, as the router counts them when it scales
    its own losses: counting each target would weaken balancing K times.

    Under context parallelism both numbers are those of this rank's positions. Megatron divides them
    as it does those of data-parallel ranks: without the per-token flag each rank's mean, averaged
    over DP x CP (only a loss function that returns no count is multiplied by the CP size); with it,
    one sum over the one count of all ranks. Reports are summed over DP x CP.

    Args:
        loss_mask_BL: [B, L] 1 where a latent position has a target.
        name: the curve the loss belongs to.
        losses_BL: [B, L] the model's loss of each latent position.

    Returns:
        The sum of losses; the number of latent positions that have a target, as an int tensor; and
        the same two as a fresh fp32 pair under ``name``, since the schedule divides the sum in
        place.
    """
    mask = loss_mask_BL.view(-1).float()
    loss_sum = torch.sum(losses_BL.view(-1).float() * mask)
    num_positions = mask.sum().clone().detach().to(torch.int)
    report = torch.cat([loss_sum.clone().detach().view(1), num_positions.float().view(1)])
    _validate(loss_sum, context=name)
    return loss_sum, num_positions, {name: report}


def _validate(loss_sum: Tensor, *, context: str) -> None:
    """Check as Megatron's own GPT script does; a spike is measured against its own phase."""
    args = names.get_args()
    machine = names.get_rerun_state_machine()
    if args.check_for_nan_in_loss_and_grad:
        for rejects, what in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            machine.validate_result(
                result=loss_sum,
                rejection_func=rejects,
                message=f"found {what} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
            # Upstream lets the first step after a start pass and would save what comes of it.
            if not machine.first_iteration_complete and rejects(loss_sum):
                raise RuntimeError(f"found {what} in the loss of the first step after a start")
    if args.check_for_spiky_loss:
        machine.validate_result(
            result=loss_sum,
            rejection_func=functools.partial(
                machine.is_unexpectedly_large, threshold=loop.SPIKE_FACTOR, context=context
            ),
            message=f"spiky {context}",
            tolerance=0.0,
            fatal=False,
        )
