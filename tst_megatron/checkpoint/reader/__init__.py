"""Read the model of a checkpoint in one CPU process, without a job: arguments, then weights."""
