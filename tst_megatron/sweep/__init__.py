"""Grids of recipes: ``plan`` says which runs share a trunk, ``run`` trains them in turns."""
