"""Reading pickles and torch archives that nobody vouches for, without running any code."""
