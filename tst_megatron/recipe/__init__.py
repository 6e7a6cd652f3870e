"""A recipe: read, completed by a profile, checked, and made into Megatron's arguments."""
