"""Training: from a recipe to the end of its run.

Read ``train.py`` first: it calls everything else, in order. ``check/`` looks at a recipe
before a start. ``pretrain`` is one rank, ``build`` what it gives to Megatron's loop, and
``step``, ``dataset`` and ``resets`` are the parts. ``run/`` knows the run folder and its records,
``report/`` the numbers.
"""
