"""Look at finished token files: are they what was written, and what do they hold?"""
