"""A rehearsal of a start: ``rehearse`` forks a process, and ``child`` builds the model in it."""
