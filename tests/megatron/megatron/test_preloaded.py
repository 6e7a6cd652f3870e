"""Ranks are forked with Megatron imported: a preload that fails is silent, and only slow."""

import sys

from processes import run_ranks


def has_megatron():
    return "megatron.core" in sys.modules and "tst_megatron.training.pretrain" in sys.modules


def test_forked_rank_has_megatron():
    assert run_ranks(has_megatron, 1, preload="preloaded") == [True]
