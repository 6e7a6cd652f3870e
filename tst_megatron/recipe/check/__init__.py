"""Check a recipe before it waits in a queue: without Megatron first, then by Megatron itself."""
