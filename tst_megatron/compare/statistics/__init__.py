"""Estimates with their confidence intervals, from numbers alone: nothing here reads a file."""
