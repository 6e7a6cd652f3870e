"""Tell a process its place in the job: rank, device, and its part of model, batch and sequence.

Example: with tensor-parallel size 2 and pipeline-parallel size 2, rank 3 is tensor-parallel rank 1
of the last stage. It reads no text: tensor-parallel rank 0 of its stage does, and broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tst_megatron.megatron import names


def is_first_rank() -> bool:
    """Tell whether this process is rank 0 of its job, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def wait_for_all_ranks() -> None:
    """Wait until every rank of the job has come here; one process alone does not wait."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def from_first_rank(value: int) -> int:
    """Return rank 0's value on every rank; all ranks call this together."""
    if not torch.distributed.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.long, device=torch.cuda.current_device())
    torch.distributed.broadcast(tensor, 0)
    return int(tensor.item())


def greatest_of_ranks(value: int) -> int:
    """Return the greatest value of any rank on every rank; all ranks call this together."""
    if not torch.distributed.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.long, device=torch.cuda.current_device())
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor.item())


def from_all_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks in the order of ranks; all ranks call this together."""
    if not torch.distributed.is_initialized():
        return [value]
    of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_ranks, value)
    return of_ranks


def current_device() -> Any:
    """Return the device of this rank's model, as ``Tensor.to`` takes it."""
    return torch.cuda.current_device()


def device_name() -> str:
    """Return the name of this rank's accelerator, for the run's records."""
    return torch.cuda.get_device_name()


def peak_memory_bytes() -> int:
    """Return the most memory that this rank has held since it started.

    Of a GPU, this is what torch's tensors took on the device. On the CPU host it is the resident
    memory of the whole process.
    """
    return int(torch.cuda.max_memory_allocated())


def is_last_pipeline_stage() -> bool:
    """Tell whether this rank has the end of the model, where the losses are."""
    return bool(names.parallel_state.is_pipeline_last_stage(ignore_virtual=True))


def data_parallel_place() -> tuple[int, int]:
    """Return the rank in the data-parallel group, and its size: who reads which samples."""
    state = names.parallel_state
    return int(state.get_data_parallel_rank()), int(state.get_data_parallel_world_size())


def sum_over_data_parallel_ranks(
    tensor: torch.Tensor, *, with_context_parallel: bool
) -> torch.Tensor:
    """Add up a tensor of each data-parallel rank, in place; all of them call this together.

    Args:
        tensor: of one shape on all of them.
        with_context_parallel: the ranks that share a sequence have other addends too.
    """
    group = names.parallel_state.get_data_parallel_group(
        with_context_parallel=with_context_parallel
    )
    torch.distributed.all_reduce(tensor, group=group)
    return tensor


def sum_over_all_ranks(values: Sequence[float]) -> list[float]:
    """Add up numbers of each rank of the job; all ranks call this together."""
    tensor = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def num_holders(parameter: torch.nn.Parameter, *, is_expert: bool) -> int:
    """Return how many ranks of the job hold the same part of a parameter.

    Args:
        parameter: of this rank's model.
        is_expert: it belongs to an expert.

    Returns:
        Their number; 0 for a second copy of the embeddings, which tied or predicting stages keep.
    """
    state = names.parallel_state
    if getattr(parameter, "shared", False):
        return 0
    is_cut = getattr(parameter, "tensor_model_parallel", False)
    if is_expert:
        of_tensor = state.get_expert_tensor_parallel_world_size()
        of_data = state.get_expert_data_parallel_world_size()
    else:
        of_tensor = state.get_tensor_model_parallel_world_size()
        of_data = state.get_data_parallel_world_size(with_context_parallel=True)
    return int(of_data * (1 if is_cut else of_tensor))


def tensor_parallel_size() -> int:
    """Return the number of ranks that share one copy of a pipeline stage."""
    return int(names.parallel_state.get_tensor_model_parallel_world_size())


def tensor_parallel_rank() -> int:
    """Return the rank in the tensor-parallel group; its rank 0 is the one that reads data."""
    return int(names.parallel_state.get_tensor_model_parallel_rank())


def broadcast_from_tensor_parallel_rank_0(tensor: torch.Tensor) -> torch.Tensor:
    """Give every tensor-parallel rank the tensor of rank 0, in place."""
    group = names.parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        source = names.parallel_state.get_tensor_model_parallel_src_rank()
        torch.distributed.broadcast(tensor, source, group=group)
    return tensor


def holds_a_batch(vp_stage: int | None) -> bool:
    """Tell whether this pipeline stage reads tokens.

    The first stage embeds them and the last predicts them. A stage with heads for multi-token
    prediction, which a layout may put in the middle, embeds them once more.
    """
    return bool(names.is_first_or_last_pipeline_stage(vp_stage)) or _has_heads(vp_stage)


def _has_heads(vp_stage: int | None) -> bool:
    args = names.get_args()
    layout = args.pipeline_model_parallel_layout
    if isinstance(layout, str):
        # The model's configuration has it parsed, the arguments have not.
        layout = names.PipelineParallelLayerLayout.from_str(
            layout=layout, pipeline_model_parallel_size=args.pipeline_model_parallel_size
        )
    return bool(
        names.mtp_on_this_rank(
            layout=layout,
            mtp_num_layers=args.mtp_num_layers,
            ignore_virtual=False,
            vp_stage=vp_stage,
        )
    )


def slices_of_this_context_parallel_rank(
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Cut out of tensors [B, L, ...] the two runs of positions that this rank computes.

    Causal attention costs more the later a position is, so of 2C runs rank r takes run r and run
    2C-1-r (Megatron's order, which its rotary embedding and the attention kernels share). Example:
    L=8, C=2: rank 0 has positions 0, 1, 6, 7, and rank 1 has positions 2 to 5.

    Args:
        tensors: of one shape up to L, which 2C divides. No attention mask: its positions are not
            those of dimension 1.

    Returns:
        [B, L / C, ...] tensors under the same names; with one rank, the tensors as they are.
    """
    assert "attention_mask" not in tensors
    sliced: dict[str, torch.Tensor] = names.get_batch_on_this_cp_rank(
        dict(tensors),
        is_hybrid_cp=False,
        cp_group=names.parallel_state.get_context_parallel_group(),
    )
    return sliced
