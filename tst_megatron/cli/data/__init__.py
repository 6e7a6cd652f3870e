"""The commands ``tst-megatron data``: ``making`` writes token files, ``reading`` looks at them."""
