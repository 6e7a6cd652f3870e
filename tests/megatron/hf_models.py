"""Small models as transformers writes them, and the tensors of a model folder."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import TINY
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen3MoeConfig


def tiny_config(vocab_size: int) -> Qwen3MoeConfig:
    """TINY's model, with a vocabulary of this size."""
    return Qwen3MoeConfig(
        hidden_size=TINY["hidden-size"],
        intermediate_size=TINY["ffn-hidden-size"],
        num_hidden_layers=TINY["num-layers"],
        num_attention_heads=TINY["num-attention-heads"],
        num_key_value_heads=TINY["num-query-groups"],
        head_dim=TINY["kv-channels"],
        num_experts=TINY["num-experts"],
        num_experts_per_tok=TINY["moe-router-topk"],
        moe_intermediate_size=TINY["moe-ffn-hidden-size"],
        norm_topk_prob=True,
        vocab_size=vocab_size,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": TINY["rotary-base"], "rope_type": "default"},
    )


def write_model(config: PretrainedConfig, folder: Path, dtype: torch.dtype) -> Path:
    """A model as transformers makes and saves it, norms away from 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            low, high = (0.5, 1.5) if "norm" in name else (-0.25, 0.25)
            parameter.uniform_(low, high)
    model.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder in Hugging Face format."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
