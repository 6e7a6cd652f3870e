"""The machines: what one of them lacks (`doctor/`), and sick ones among many (`preflight/`)."""
