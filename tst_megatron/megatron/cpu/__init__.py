"""Run Megatron on a machine without a GPU, and ask what a device can do.

``host`` installs the stand-ins that ``fakes`` lists; ``gloo`` has those of collectives.
``arguments`` are the flags that a recipe needs there. ``transformer_engine`` answers validation for
the version that jobs have. ``device`` and ``meter`` choose and measure a device of either kind.
"""
