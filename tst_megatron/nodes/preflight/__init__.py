"""Find sick nodes before a training run starts on them."""
