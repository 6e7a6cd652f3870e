"""Recorded runs beside each other: what differs, how large the gap is, and how sure that is.

``results.py`` names everything that a comparison finds. ``comparison.py`` finds it, step by step:
``runs/`` reads recorded runs, ``arms.py`` puts them together, ``comparability/`` says what they
share, ``pairs/`` compares each arm with the baseline by means of ``statistics/``, and
``downstream.py`` joins in the tasks of ``evaluate``. ``report/`` shows all of it: tables on a
terminal, one HTML page, pictures, JSON.
"""
