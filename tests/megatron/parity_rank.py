"""One rank of a layout: load the one checkpoint, compute gradients, say where they belong.

A gradient is described by the model's own sharded state dict, in which each parameter's data is
exchanged for its gradient: whatever is cut or copied over ranks says there where it belongs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import one_step
import torch
from layouts import (
    ALONE,
    END,
    LENGTH,
    LINEAR,
    LOSSES,
    MICRO_BATCH,
    OF_MODEL,
    PHASES,
    RECIPE,
    SEQUENCES,
    SWITCHES,
    Case,
    Layout,
)
from tiny import VOCABULARY
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """What one rank holds of one parameter's gradient."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter: of one layer, and of one expert."""
    place: tuple[slice, ...]
    values: Tensor


@dataclass
class Part:
    """What one rank knows of a case."""

    tensor_rank: int
    data_rank: int
    num_data_ranks: int
    pieces: list[Piece] = field(default_factory=list)
    reports: list[dict[str, list[float]]] = field(default_factory=list)
    """By micro-batch of this rank; empty without the last pipeline stage."""
    routing: dict[int, list[Tensor]] = field(default_factory=dict)
    """By layer, then by micro-batch of this rank: [positions of this rank, experts], bool."""
    num_reads: list[int] = field(default_factory=list)
    """Micro-batches that each chunk took from its data iterator."""
    broadcasts: list[tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=list)
    """What was broadcast over the tensor-parallel group."""
    drawn_otherwise: list[str] = field(default_factory=list)
    """Weights of this rank whose initial values are not those of the one process."""


def parts_of_layouts(
    layouts: Sequence[tuple[Layout, Sequence[Case]]], folder: Path
) -> dict[tuple[str, Case], Part]:
    """Compute cases in layouts as one rank; the layout of one process saves the checkpoints."""
    parts = {}
    for layout, cases in layouts:
        flags = {**RECIPE, "tokenizer-model": str(folder / "tokenizer.model"), **layout.flags}
        args = one_step.start(flags)
        for (is_tied, loss), group in itertools.groupby(cases, lambda c: (c.is_tied, c.loss)):
            models, drawn_otherwise = build(args, is_tied, loss, folder, saves=layout == ALONE)
            shared = list(group)
            if args.overlap_grad_reduce:
                # The first batch only counts: gradients are reduced early from the second on.
                part_of(args, models, shared[0])
            for case in shared:
                parts[layout.name, case] = part_of(args, models, case)
                parts[layout.name, case].drawn_otherwise = drawn_otherwise
    return parts


def build(
    args: Any, is_tied: bool, loss: str, folder: Path, *, saves: bool
) -> tuple[list[Any], list[str]]:
    """Build the model and load it from the checkpoint, or save the checkpoint.

    Returns:
        This rank's chunks, and the weights that loading has changed.
    """
    from megatron.core import dist_checkpointing

    args.untie_embeddings_and_output_weights = not is_tied
    args.calculate_per_token_loss = args.eod_mask_loss = False
    for name, value in LOSSES[loss].items():
        setattr(args, name, value)
    models = one_step.build(args)
    checkpoint = folder / ("tied" if is_tied else "untied")
    sharded = {f"model{i}": sharded_weights(model) for i, model in enumerate(models)}
    if saves and not checkpoint.exists():
        checkpoint.mkdir()
        dist_checkpointing.save(sharded, str(checkpoint))
        return models, []
    drawn = [
        (name, weight, weight.detach().clone())
        for model in models
        for name, weight in model.module.named_parameters()
    ]
    loaded = dist_checkpointing.load(sharded, str(checkpoint))
    for i, model in enumerate(models):
        model.module.load_state_dict(loaded[f"model{i}"], strict=True)
    return models, [name for name, weight, before in drawn if not torch.equal(weight, before)]


def part_of(args: Any, models: Sequence[Any], case: Case) -> Part:
    """Compute one case with this rank's share of the model."""
    from megatron.core import parallel_state

    from tst_megatron.model import linear_loss
    from tst_megatron.schedule import Phase, Schedule

    # Several chunks of a vocabulary that would fit whole.
    linear_loss.WORKSPACE_BYTES, linear_loss.CHUNK_MULTIPLE = 1, 96
    fields = {**PHASES, **SWITCHES, **LINEAR}[case.phase]
    for model in models:
        for name, default in OF_MODEL.items():
            setattr(model.module, name, fields.get(name, default))
    fields = {name: value for name, value in fields.items() if name not in OF_MODEL}
    phase = Phase(**fields, first_step=0, num_steps=1)
    schedule = Schedule(phases=(phase,), num_latent_positions=LENGTH, global_batch_size=SEQUENCES)
    if args.overlap_param_gather:
        forget_other_shards(models)
    part = Part(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        num_data_ranks=parallel_state.get_data_parallel_world_size(),
    )
    readers = [Reader(micro_batches(schedule.raw_tokens_per_sample(phase), part)) for _ in models]
    iterators = [reader if part.tensor_rank == 0 else None for reader in readers]
    tensor_group = parallel_state.get_tensor_model_parallel_group()
    with (
        recorded_routing(models, part.routing),
        recorded_broadcasts(tensor_group, part.broadcasts),
    ):
        part.reports = one_step.forward_backward(args, models, schedule, iterators)
    part.num_reads = [reader.num_reads for reader in readers]
    part.pieces = [piece for model in models for piece in gradient_pieces(model)]
    return part


def raw_tokens(num_raw_tokens: int) -> Tensor:
    """[SEQUENCES, num_raw_tokens] the global batch, with some ends of documents, unevenly."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, VOCABULARY, (SEQUENCES, num_raw_tokens), generator=generator)
    tokens[1, 5:8] = END
    tokens[4, 3 : num_raw_tokens // 2] = END
    tokens[6, 2] = END
    return tokens


def micro_batches(num_raw_tokens: int, part: Part) -> list[dict[str, Tensor]]:
    """This rank's micro-batches: Megatron deals them out to the data-parallel ranks in turn."""
    whole = raw_tokens(num_raw_tokens).split(MICRO_BATCH)
    return [{"tokens": tokens} for tokens in whole[part.data_rank :: part.num_data_ranks]]


class Reader:
    """A data iterator that counts what is taken from it."""

    def __init__(self, batches: Iterable[dict[str, Tensor]]) -> None:
        self._batches = iter(batches)
        self.num_reads = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        self.num_reads += 1
        return next(self._batches)


@contextmanager
def recorded_routing(models: Sequence[Any], into: dict[int, list[Tensor]]) -> Iterator[None]:
    """Within it, which experts each position goes to is written down."""
    from megatron.core.transformer.moe.router import TopKRouter

    def record(router: Any, _: Any, output: tuple[Tensor, Tensor]) -> None:
        into.setdefault(router.layer_number, []).append(output[1].detach().bool().clone())

    routers = (m for model in models for m in model.modules() if isinstance(m, TopKRouter))
    hooks = [router.register_forward_hook(record) for router in routers]
    yield
    for hook in hooks:
        hook.remove()


@contextmanager
def recorded_broadcasts(
    group: Any, into: list[tuple[torch.dtype, tuple[int, ...]]]
) -> Iterator[None]:
    """Within it, what is broadcast over a group is written down."""
    original = torch.distributed.broadcast

    def broadcast(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(value is group for value in (*args, *kwargs.values())):
            into.append((tensor.dtype, tuple(tensor.shape)))
        return original(tensor, *args, **kwargs)

    torch.distributed.broadcast = broadcast
    yield
    torch.distributed.broadcast = original


def forget_other_shards(models: Sequence[Any]) -> None:
    """Leave each rank its own shard of the parameters: the rest must be gathered before use."""
    for _, bucket, ranks, rank in sharded_buckets(models):
        for other, shard in enumerate(bucket.param_data.chunk(ranks)):
            if other != rank:
                shard.fill_(torch.nan)


def sharded_buckets(models: Sequence[Any]) -> Iterator[tuple[Any, Any, int, int]]:
    """(process group, bucket, its size, this rank in it) of the distributed optimizer."""
    for model in models:
        for group in model.bucket_groups + model.expert_parallel_bucket_groups:
            ranks = group.intra_distributed_optimizer_instance_group
            for bucket in group.buckets:
                yield ranks, bucket, ranks.size(), ranks.rank()


def sharded_weights(model: Any) -> dict[str, Any]:
    from tst_megatron.megatron.distributed_checkpoint import model as checkpoint

    return checkpoint.sharded_weights(model.module, {"singleton_local_shards": False})


def gradient_pieces(model: Any) -> list[Piece]:
    """What this rank holds of every gradient of a chunk, where the sharded state dict puts it."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory, apply_factories

    if model.ddp_config.use_distributed_optimizer:
        # The reduced gradient stands in this rank's shard of each bucket alone.
        for group, bucket, ranks, rank in sharded_buckets([model]):
            shard = bucket.grad_data.chunk(ranks)[rank].clone()
            torch.distributed.all_gather_into_tensor(bucket.grad_data, shard, group=group)
    gradients = {p.data_ptr(): p.main_grad for p in model.module.parameters()}

    def exchange(entry: Any) -> Any:
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            return replace(entry, data=gradients[entry.data.data_ptr()].view_as(entry.data))
        return entry

    entries = dict_list_map_inplace(exchange, sharded_weights(model))
    apply_factories(entries)
    return [piece_of(entry) for entry in nested_values(entries) if isinstance(entry, ShardedTensor)]


def piece_of(entry: Any) -> Piece:
    """Layers and experts are axes of one tensor of the checkpoint, and parameters of their own."""
    numbers, place = entry.global_slice()[: entry.prepend_axis_num], entry.global_slice()
    return Piece(
        name=entry.key + "".join(f"[{number}]" for number in numbers),
        shape=tuple(entry.global_shape[entry.prepend_axis_num :]),
        place=place[entry.prepend_axis_num :],
        values=entry.data.detach().clone(),
    )
