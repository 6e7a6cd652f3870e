"""Megatron's distributed checkpoints: saved, loaded, and read without a job."""
