"""Check a recipe as a start would read it: ``check_recipe`` asks all rules and Megatron.

``rehearse`` then builds what a start builds, in a forked process that runs ``child``.
"""
