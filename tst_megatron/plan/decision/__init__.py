"""What to do: ``search.py`` weighs schedules, ``verdict.py`` decides, ``advice.py`` spends."""
