"""Check a recipe rule by rule; none of the rules needs Megatron or torch."""
