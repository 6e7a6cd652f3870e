"""What a machine without a GPU needs to run Megatron."""
