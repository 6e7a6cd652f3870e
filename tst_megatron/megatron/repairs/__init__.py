"""Every workaround for Megatron's wheel, each with the condition for its removal."""
