"""Large-scale MoE pre-training on Megatron-Core with Token-Superposition Training."""

__version__ = "0.1.0"

__all__ = ["__version__"]
