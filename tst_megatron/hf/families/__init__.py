"""The model families that have a form in both Megatron and Hugging Face: one file for each.

To add a family: write a file like ``qwen3.py`` with its settings, its part of config.json both ways
and its table of weights, and name it in ``known.py``.
"""
