"""From a Megatron checkpoint to Hugging Face format, and the proof of it.

README.md here shows the way from a checkpoint to a proven folder, step by step.
"""
