"""What superposition gains: the paper's grids, the worth of repeated text, the three views."""
