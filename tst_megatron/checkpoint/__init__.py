"""A run's checkpoints: named, found, checked, kept, resharded, and opened without a job.

README.md here shows the way from a save to a checkpoint that is known to be whole.
"""
