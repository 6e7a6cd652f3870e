"""Read a recipe, complete it by a profile, check it, and make Megatron's arguments of it."""
