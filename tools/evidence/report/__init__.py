"""The generated parts of ``docs/evidence.md``."""
