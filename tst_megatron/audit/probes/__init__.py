"""The probes: what is read, which tokens are scored, and how scores become one number.

Everything that is drawn at random comes from a seed and from ``VERSION`` (``catalogue.py``).
"""
