"""Processes: their signals, locks, ranks and workers."""
