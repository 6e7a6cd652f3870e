"""The model families that have a form in both Megatron and Hugging Face: one file for each."""
