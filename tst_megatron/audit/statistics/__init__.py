"""Paired bootstrap, correction for many probes, and verdicts: nothing here reads a file."""
