"""The paper's downstream tasks through lm-eval, also without a network."""
