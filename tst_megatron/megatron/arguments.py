"""Parse and validate Megatron's arguments: its parser, its checks, and its global arguments.

A recipe becomes flags of Megatron's command line. ``argument_parser`` says which flags exist,
``validate_arguments`` checks a set of them for a job that is not started, and ``parse_arguments``
makes them the arguments of this process.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.cpu import host
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.megatron.repairs.gpt_config import gpt_config_from_args
from tst_megatron.megatron.silence import in_silence


def argument_parser() -> argparse.ArgumentParser:
    """Return Megatron's own parser: the names, types and defaults that a recipe is checked by."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    names.arguments.add_megatron_arguments(parser)
    return parser


def default_arguments() -> argparse.Namespace:
    """Return every argument of Megatron at its default, unvalidated."""
    return argument_parser().parse_args([])


def parse_arguments(flags: Sequence[str]) -> argparse.Namespace:
    """Parse and validate flags as Megatron does, and make them its global arguments."""
    # With this flag Megatron would read a checkpoint here; a recipe with it was refused.
    assert "--use-checkpoint-args" not in flags, "checkpoints are read by `read_checked` alone"
    with _command_line(flags):
        args: argparse.Namespace = names.arguments.parse_and_validate_args()
    return args


def validate_arguments(flags: Sequence[str], *, world_size: int) -> argparse.Namespace:
    """Parse and validate flags for a job of ``world_size`` ranks without starting anything.

    Raises:
        AssertionError, ValueError, RuntimeError: what Megatron raises on a combination it refuses.
    """
    with _command_line(flags), in_silence():
        args: argparse.Namespace = names.arguments.parse_args()
        args.rank, args.world_size = 0, world_size
        with _architecture_of_the_job(args), transformer_engine_of_the_job():
            names.arguments.validate_args(args)
    return args


def validate_configurations(args: argparse.Namespace) -> None:
    """Build the configurations that a job builds first of its arguments: they have own checks.

    Raises:
        AssertionError, ValueError, RuntimeError: what the configuration of the model or of data
            parallelism refuses.
    """
    with in_silence(), transformer_engine_of_the_job():
        gpt_config_from_args(copy.copy(args)).finalize()
        names.training.get_megatron_ddp_config(args)


@contextmanager
def _architecture_of_the_job(args: argparse.Namespace) -> Iterator[None]:
    """Answer validation's questions about the GPU where none can be asked, as on login nodes.

    The newest architecture is answered. What depends on an older one is asked again when the job
    starts. Remove when validation does not touch the device.
    """
    before = names.arguments.get_device_arch_version, torch.cuda.get_device_capability
    if host.has_no_gpu():
        names.arguments.get_device_arch_version = lambda: 10
        if args.transformer_impl == "transformer_engine":
            # Not for the CPU host, whose job would be asked the same and have no answer.
            torch.cuda.get_device_capability = lambda device=None: (10, 0)
    try:
        yield
    finally:
        names.arguments.get_device_arch_version, torch.cuda.get_device_capability = before


@contextmanager
def _command_line(flags: Sequence[str]) -> Iterator[None]:
    # Megatron reads sys.argv and offers no other way in.
    before = sys.argv
    sys.argv = [before[0], *flags]
    try:
        yield
    finally:
        sys.argv = before
