"""Know Megatron's option keys without importing Megatron: names, types, defaults and kinds."""
