"""``tst-megatron doctor``: what of this machine and its software keeps a run from training.

``gather.py`` collects facts, ``diagnose.py`` turns them into findings, ``show.py`` prints them. No
file here imports torch or another package that may be broken: ``probe.py`` does so in processes of
their own.
"""
