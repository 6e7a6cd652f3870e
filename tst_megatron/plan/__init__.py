"""Decide before a run: what it takes, what it gains, and whether it should use superposition.

``make_plan.py`` is the table of contents. ``cost/`` counts on the recipe, ``gain/`` reads the
paper's grids and says what repeated text is worth, and ``decision/`` weighs schedules.
``memory/`` builds any rank of a job without values, and measures its layers. ``published/`` has
every number that is quoted, with its source. Each part makes one ``Section``. ``show.py``
prints sections, and ``picture.py`` draws the numbers that ``drawn.py`` takes from them.
"""
