"""The first words of what the rehearsing process says to the one that asks."""

from __future__ import annotations

FINE = "fine"
REFUSED = "refused"
"""The job cannot be built, with the reason in our words."""
RAISED = "raised"
"""Building it raised an exception."""
MISSING = "missing"
"""A package of the job's environment is not installed here."""
