"""Read pickles and archives of torch that may be hostile, without running any code of theirs."""
