"""A comparison for people and scripts: a terminal, one HTML page with pictures beside it, JSON.

``tables.py`` and ``story.py`` say everything once, as cells and sentences; ``terminal.py`` and
``page.py`` set them. ``lines.py`` decides what a chart holds, and ``charts.py`` draws it.
"""
