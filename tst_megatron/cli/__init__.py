"""The command line: what is given is parsed here, and the rooms below do the work.

A file holds the commands about one thing; ``app.py`` lists all of them. Commands import inside
their functions, because a command must start at once: importing Megatron and torch takes seconds,
and ``--help``, ``status`` or a refused option need neither.
"""
