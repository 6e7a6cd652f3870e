"""Token files that another tool wrote, taken as they are."""
