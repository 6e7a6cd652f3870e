"""First steps on one machine: ``chain`` runs everything once, ``two_arms`` compares two trainings.

Both run the commands that a user would type.
"""
