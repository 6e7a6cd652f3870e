"""FP8 and NVFP4 of an export, and the proof of them."""
