"""Recorded runs beside each other: what differs, how large the gap is, and how sure that is.

``results.py`` names everything that a comparison finds. ``comparison.py`` finds it, from runs that
``runs.py`` has read. ``report/`` shows it: tables on a terminal, one HTML page, pictures, JSON.
"""
