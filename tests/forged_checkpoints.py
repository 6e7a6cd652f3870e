"""Checkpoints whose bytes are whole and whose content is wrong, and small ones to make them of."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

LAYERS, EXPERTS, HIDDEN, WORDS = 2, 3, 8, 40

ARGUMENTS = {
    "num_layers": LAYERS,
    "num_experts": EXPERTS,
    "moe_layer_freq": 1,
    "hidden_size": HIDDEN,
    "padded_vocab_size": WORDS,
    "untie_embeddings_and_output_weights": True,
    "bf16": True,
    "fp16": False,
    "global_batch_size": 4,
    "tst": {"reset-optimizer": False},
}


def weights() -> dict[str, torch.Tensor]:
    """A model as Megatron stores it, in bfloat16."""
    torch.manual_seed(1)
    shapes = {
        "embedding.word_embeddings.weight": (WORDS, HIDDEN),
        "output_layer.weight": (WORDS, HIDDEN),
        "decoder.final_layernorm.weight": (HIDDEN,),
        "decoder.layers.self_attention.linear_qkv.weight": (LAYERS, 16, HIDDEN),
        "decoder.layers.self_attention.linear_proj.weight": (LAYERS, HIDDEN, 8),
        "decoder.layers.mlp.router.weight": (LAYERS, EXPERTS, HIDDEN),
        "decoder.layers.mlp.experts.experts.linear_fc1.weight": (LAYERS, EXPERTS, 16, HIDDEN),
        "decoder.layers.mlp.experts.experts.linear_fc2.weight": (LAYERS, EXPERTS, HIDDEN, 8),
    }
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def with_state(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with the optimizer's state, stored under the weights' names."""
    state = dict(model)
    for name, weight in model.items():
        # Bits that rounding takes away again.
        state[f"optimizer.state.param.{name}"] = weight.float() * (1 + 2**-12)
        state[f"optimizer.state.exp_avg.{name}"] = torch.randn(weight.shape)
        state[f"optimizer.state.exp_avg_sq.{name}"] = torch.rand(weight.shape)
    return state


def with_buckets(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with the optimizer's state in one bucket, in another order and with padding."""
    bucket = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32)"
    parts = []
    for weight in reversed(model.values()):
        parts += [weight.float().flatten() * (1 + 2**-12)]
        parts += [torch.full((-weight.numel() % 64,), torch.nan)]
    master = torch.cat(parts)
    squares = torch.where(master.isnan(), master, master.square())
    return {
        **model,
        f"{bucket}.bucket_idx_0.param": master,
        f"{bucket}.bucket_idx_0.exp_avg": master.clone(),
        f"{bucket}.bucket_idx_0.exp_avg_sq": squares,
    }


def save(folder: Path, state: dict[str, torch.Tensor], *, step: int = 8, **changes: object) -> Path:
    """Save tensors as Megatron does, with a common state of a step.

    Args:
        folder: where the ``iter_`` folder goes.
        state: the tensors.
        step: of the common state and of the folder.
        changes: to the common state, or to the arguments in it.
    """
    checkpoint = folder / f"iter_{step:07d}"
    arguments = Namespace(**{**ARGUMENTS, "consumed_train_samples": step * 4})
    known = {**vars(arguments), "overlap_grad_reduce": False}
    for name in known.keys() & changes.keys():
        setattr(arguments, name, changes.pop(name))
    arguments.tst = {**arguments.tst, "cursor": {"step": step}}
    common = {
        "args": arguments,
        "iteration": step,
        "opt_param_scheduler": {"num_steps": step * 4},
        "optimizer": {"optimizer": {"param_groups": [{"step": float(step)}]}},
        **changes,
    }
    whole = {**state, "common_state/shard_0_1": [common]}
    planner = DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(whole, checkpoint_id=checkpoint, planner=planner, no_dist=True)
    (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    return checkpoint


def forge(checkpoint: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    """Change the values of a stored tensor (of its first chunk), its checksums with them."""
    places = dcp.FileSystemReader(checkpoint).read_metadata().storage_data
    place = next(place for index, place in places.items() if index.fqn == name)
    with (checkpoint / place.relative_path).open("r+b") as shard:
        shard.seek(place.offset)
        tensor = torch.load(io.BytesIO(shard.read(place.length)), weights_only=True)
        change(tensor)
        new = io.BytesIO()
        torch.save(tensor, new)
        assert len(new.getvalue()) == place.length
        shard.seek(place.offset)
        shard.write(new.getvalue())
