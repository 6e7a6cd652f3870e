"""One arm against the baseline: where both are taken, the gap, equal loss, and the verdict."""
