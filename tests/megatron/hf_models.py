"""Small models as transformers writes them, and the tensors of a model folder."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PretrainedConfig


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
