"""Check machines before a run: one alone (`doctor/`), or sick ones among many (`preflight/`)."""
