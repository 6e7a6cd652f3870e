"""Megatron's option keys without Megatron: their names, types, defaults and kinds."""
