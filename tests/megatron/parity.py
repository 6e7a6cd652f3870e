"""Gradients of one model in every parallel layout, assembled and compared with one process's.

All layouts load one checkpoint, which the one-process run saves, and see the same micro-batches:
the auxiliary loss of the experts depends on them. Layouts of as many ranks share one process group.

A gradient is assembled through the model's own sharded state dict, in which each parameter's data
is exchanged for its gradient. Whatever is cut or copied over ranks says there where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import one_step
import torch
from processes import run_ranks
from tiny import TINY, VOCABULARY
from torch import Tensor

LENGTH, SEQUENCES, MICRO_BATCH, END = 8, 8, 2, 2
TOLERANCE = 1e-5
"""Largest |g - g_ref| / |g_ref| of any parameter, Euclidean norms, in fp32."""

RECIPE = {
    **TINY,
    # Two chunks on each of two pipeline stages.
    "num-layers": 4,
    "hidden-size": 32,
    "kv-channels": 8,
    "ffn-hidden-size": 64,
    "moe-ffn-hidden-size": 32,
    # Larger than in training, so that every part of the model matters to the gradient.
    "init-method-std": 0.1,
    "moe-aux-loss-coeff": 0.1,
    "moe-z-loss-coeff": 0.01,
    "seq-length": LENGTH,
    "max-position-embeddings": LENGTH,
    "micro-batch-size": MICRO_BATCH,
    "global-batch-size": SEQUENCES,
    "use-distributed-optimizer": False,
    "tokenizer-type": "SentencePieceTokenizer",
    "rerun-mode": "disabled",  # it wants the training loop around each step
    "dataloader-type": "single",
}

TP2 = {"tensor-model-parallel-size": 2, "sequence-parallel": True}
PP2 = {"pipeline-model-parallel-size": 2}
VPP2 = {**PP2, "num-layers-per-virtual-pipeline-stage": 1}
EP2 = {"expert-model-parallel-size": 2}
ETP1 = {"expert-tensor-parallel-size": 1}
ETP2 = {"expert-tensor-parallel-size": 2}
DISTRIBUTED_OPTIMIZER = {"use-distributed-optimizer": True}
OVERLAPS = {
    **DISTRIBUTED_OPTIMIZER,
    "overlap-grad-reduce": True,
    "overlap-param-gather": True,
    "ddp-bucket-size": 20_000,  # several buckets, or nothing overlaps
}


@dataclass(frozen=True)
class Layout:
    """A way to spread the model and the batch over ranks."""

    name: str
    num_ranks: int
    flags: Mapping[str, Any]


ALONE = Layout("one process", 1, {})
LAYOUTS = (
    Layout("DP2", 2, {}),
    Layout("DP2, distributed optimizer", 2, DISTRIBUTED_OPTIMIZER),
    Layout("DP2, distributed optimizer, both overlaps", 2, OVERLAPS),
    Layout("TP2+SP", 2, TP2),
    Layout("TP2+SP, ETP1", 2, {**TP2, **ETP1}),
    Layout("TP2+SP, ETP1, EP2", 2, {**TP2, **ETP1, **EP2}),
    Layout("PP2", 2, PP2),
    Layout("VPP2 on PP2", 2, VPP2),
    Layout("EP2", 2, EP2),
    Layout("EP2, both overlaps", 2, {**EP2, **OVERLAPS}),
    Layout("ETP2 on TP1", 2, ETP2),
    Layout("TP2+SP x PP2", 4, {**TP2, **PP2}),
    Layout("TP2+SP x DP2, both overlaps", 4, {**TP2, **OVERLAPS}),
    Layout("TP2+SP x EP2", 4, {**TP2, **EP2}),
    Layout("EP2 x PP2", 4, {**EP2, **PP2}),
    Layout("ETP2 x EP2 on TP1", 4, {**ETP2, **EP2}),
    Layout("PP2 x DP2, distributed optimizer", 4, {**PP2, **DISTRIBUTED_OPTIMIZER}),
    Layout("VPP2 on PP2 x DP2, both overlaps", 4, {**VPP2, **OVERLAPS}),
    Layout("VPP2 on PP2 x TP2+SP", 4, {**VPP2, **TP2}),
    Layout("VPP2 on PP2 x EP2, both overlaps", 4, {**VPP2, **EP2, **OVERLAPS}),
)

PHASES: dict[str, dict[str, Any]] = {
    # Fields of a `Phase`; another switch is one line.
    "K=4": {"bag_size": 4},
    "K=1": {"bag_size": 1},
}

LOSSES: dict[str, dict[str, Any]] = {
    "mean": {},
    "per token": {"calculate_per_token_loss": True},
    "mean, masked": {"eod_mask_loss": True},
    "per token, masked": {"calculate_per_token_loss": True, "eod_mask_loss": True},
}


@dataclass(frozen=True)
class Case:
    """What is computed in a layout."""

    phase: str
    is_tied: bool = False
    loss: str = "mean"

    def __str__(self) -> str:
        return f"{self.phase}, {'tied' if self.is_tied else 'untied'}, {self.loss}"


CASES = tuple(Case(phase, is_tied) for phase in PHASES for is_tied in (False, True))


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


@dataclass(frozen=True)
class Result:
    """A case of the whole model, whatever the layout."""

    gradients: dict[str, Tensor]
    losses: list[dict[str, list[float]]]
    """By micro-batch of the global batch."""
    routing: dict[tuple[int, int], Tensor]
    """By layer and micro-batch of the global batch: [positions, experts], bool."""
    disagreement: float
    """Largest |difference| of two copies of an element, against the norm of its parameter."""
    parts: list[Part]


# --- on the ranks --------------------------------------------------------------------------------


def parts_of_layouts(
    layouts: Sequence[Layout], cases: Sequence[Case], folder: Path
) -> dict[tuple[str, Case], Part]:
    """Compute cases in layouts as one rank; the layout of one process saves the checkpoints."""
    parts = {}
    for layout in layouts:
        flags = {**RECIPE, "tokenizer-model": str(folder / "tokenizer.model"), **layout.flags}
        args = one_step.start(flags)
        for case in cases:
            parts[layout.name, case] = part_of(args, case, folder, saves=layout == ALONE)
    return parts


def part_of(args: Any, case: Case, folder: Path, *, saves: bool) -> Part:
    from megatron.core import dist_checkpointing, parallel_state

    from tst_megatron.schedule import Phase, Schedule

    args.untie_embeddings_and_output_weights = not case.is_tied
    args.calculate_per_token_loss = False
    args.eod_mask_loss = False
    for name, value in LOSSES[case.loss].items():
        setattr(args, name, value)
    models = one_step.build(args)
    checkpoint = folder / ("tied" if case.is_tied else "untied")
    sharded = {f"model{i}": sharded_weights(model) for i, model in enumerate(models)}
    if saves and not checkpoint.exists():
        checkpoint.mkdir()
        dist_checkpointing.save(sharded, str(checkpoint))
    else:
        loaded = dist_checkpointing.load(sharded, str(checkpoint))
        for i, model in enumerate(models):
            model.module.load_state_dict(loaded[f"model{i}"], strict=True)
    if args.overlap_param_gather:
        forget_other_shards(models)
    part = Part(
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        num_data_ranks=parallel_state.get_data_parallel_world_size(),
    )
    phase = Phase(**PHASES[case.phase], first_step=0, num_steps=1)
    schedule = Schedule(phases=(phase,), num_latent_positions=LENGTH, global_batch_size=SEQUENCES)
    hooks = [hook for model in models for hook in record_routing(model, part.routing)]
    readers = [Reader(micro_batches(phase, part)) for _ in models]
    iterators = [reader if part.tensor_rank == 0 else None for reader in readers]
    with recorded_broadcasts(parallel_state.get_tensor_model_parallel_group(), part.broadcasts):
        part.reports = one_step.forward_backward(args, models, schedule, iterators)
    part.num_reads = [reader.num_reads for reader in readers]
    for hook in hooks:
        hook.remove()
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


def micro_batches(phase: Any, part: Part) -> list[dict[str, Tensor]]:
    """This rank's micro-batches: Megatron deals them out to the data-parallel ranks in turn."""
    whole = raw_tokens((LENGTH + 1) * phase.bag_size).split(MICRO_BATCH)
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


def record_routing(model: Any, routing: dict[int, list[Tensor]]) -> list[Any]:
    from megatron.core.transformer.moe.router import TopKRouter

    def record(router: Any, _: Any, output: tuple[Tensor, Tensor]) -> None:
        routing.setdefault(router.layer_number, []).append(output[1].detach().bool().clone())

    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    return [router.register_forward_hook(record) for router in routers]


class recorded_broadcasts:
    """Within it, what is broadcast over a group is written down."""

    def __init__(self, group: Any, into: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._group, self._into = group, into

    def __enter__(self) -> None:
        self._broadcast = torch.distributed.broadcast

        def broadcast(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._group in (*args, kwargs.get("group")):
                self._into.append((tensor.dtype, tuple(tensor.shape)))
            return self._broadcast(tensor, *args, **kwargs)

        torch.distributed.broadcast = broadcast

    def __exit__(self, *_: Any) -> None:
        torch.distributed.broadcast = self._broadcast


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
    from tst_megatron.upstream import checkpoint

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


# --- over all ranks ------------------------------------------------------------------------------


def run_layouts(
    layouts: Sequence[Layout], cases: Sequence[Case], folder: Path
) -> dict[tuple[str, Case], Result]:
    """Compute cases in layouts; those of as many ranks share their processes.

    Args:
        layouts: ``ALONE`` has to come first in a new folder, which it saves the checkpoints to.
        cases: what to compute in each.
        folder: holds ``tokenizer.model``.
    """
    results = {}
    for num_ranks in sorted({layout.num_ranks for layout in layouts}):
        shared = [layout for layout in layouts if layout.num_ranks == num_ranks]
        of_ranks = run_ranks(parts_of_layouts, num_ranks, shared, cases, folder)
        for key in of_ranks[0]:
            results[key] = assemble([parts[key] for parts in of_ranks])
    return results


def assemble(parts: list[Part]) -> Result:
    """Put together what the ranks hold; every element of every parameter must be there."""
    gradients: dict[str, Tensor] = {}
    disagreement = 0.0
    pieces = [piece for part in parts for piece in part.pieces]
    for piece in pieces:
        whole = gradients.setdefault(piece.name, torch.full(piece.shape, torch.nan))
        whole[piece.place] = piece.values
    for piece in pieces:
        whole = gradients[piece.name]
        difference = (whole[piece.place] - piece.values).abs().max().item()
        disagreement = max(disagreement, difference / max(whole.norm().item(), 1e-8))
    for name, whole in gradients.items():
        assert whole.isfinite().all(), f"{name} is not whole or not finite"
    losses: dict[int, dict[str, list[float]]] = {}
    routing: dict[tuple[int, int], dict[int, Tensor]] = {}
    for part in parts:
        for i, report in enumerate(part.reports):
            losses[i * part.num_data_ranks + part.data_rank] = report
        for layer, maps in part.routing.items():
            for i, of_positions in enumerate(maps):
                key = (layer, i * part.num_data_ranks + part.data_rank)
                routing.setdefault(key, {})[part.tensor_rank] = of_positions
    return Result(
        gradients=gradients,
        losses=[losses[i] for i in sorted(losses)],
        # Sequence parallelism cuts [L, B] positions along L.
        routing={
            key: torch.cat([of_rank[rank] for rank in sorted(of_rank)])
            for key, of_rank in routing.items()
        },
        disagreement=disagreement,
        parts=parts,
    )


@dataclass(frozen=True)
class Error:
    """How far a gradient is from the reference."""

    parameter: str
    relative: float
    """|g - g_ref| / max(|g_ref|, 1e-8), Euclidean norms."""
    largest: float
    """The same of the elements that are largest in absolute value."""


def errors(result: Result, reference: Result) -> list[Error]:
    """The error of every parameter, the worst first."""
    assert result.gradients.keys() == reference.gradients.keys()
    found = []
    for name, expected in reference.gradients.items():
        difference = result.gradients[name] - expected
        found.append(
            Error(
                name,
                difference.norm().item() / max(expected.norm().item(), 1e-8),
                difference.abs().max().item() / max(expected.abs().max().item(), 1e-8),
            )
        )
    return sorted(found, key=lambda error: -error.relative)


def have_equal_routing(result: Result, reference: Result) -> bool:
    """Whether every position of every micro-batch went to the same experts in every layer."""
    return result.routing.keys() == reference.routing.keys() and all(
        torch.equal(of_positions, reference.routing[key])
        for key, of_positions in result.routing.items()
    )
