"""Decide before a run: what it takes, what it gains, and whether it should use superposition.

``make_plan.py`` is the table of contents. ``model.py`` and ``cost.py`` count on the recipe;
``gain.py`` reads the paper's grids; ``laws.py`` says what text is worth that is read again;
``advice.py`` searches, and ``verdict.py`` decides. ``published/`` has every number that is quoted,
with its source. Each part makes one ``Section``, and ``show.py`` prints sections.
"""
