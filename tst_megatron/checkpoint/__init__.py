"""A run's checkpoints: named, found, checked, kept, resharded, and opened without a job."""
