"""Look at finished token files: check that they are what was written, and show what they hold."""
