"""Find what stops this machine and its software from training (``tst-megatron doctor``).

``gather.py`` collects facts, ``diagnose.py`` turns them into findings, ``show.py`` prints them. No
file here imports torch or another package that may be broken: ``probe.py`` does so in processes of
their own.
"""
