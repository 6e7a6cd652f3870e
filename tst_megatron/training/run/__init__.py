"""The run folder: what a run writes of itself, where it starts again, and how its ranks start."""
