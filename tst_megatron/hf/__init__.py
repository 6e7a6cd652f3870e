"""From a Megatron checkpoint to Hugging Face format, and the proof of it."""
