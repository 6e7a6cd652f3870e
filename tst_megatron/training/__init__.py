"""The main job: one step, its numbers, the run folder, and how ranks start and end."""
