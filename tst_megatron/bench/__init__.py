"""Speed: what this project adds, measured in one process against the other ways to do it."""
