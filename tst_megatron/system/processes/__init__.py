"""Deal with processes: their signals, locks, ranks and workers."""
