"""What a recipe must keep to, rule by rule; none of it needs Megatron or torch."""
