"""Token files on disk: Megatron's .bin/.idx format, written and read."""
