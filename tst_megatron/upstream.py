"""The seam with Megatron: the only file, with ``host/cpu.py``, that knows its unstable names.

Every name used elsewhere is imported or wrapped here; every workaround is here with the condition for
its removal. ``tests/megatron/test_upstream_contract.py`` pins each signature that is relied on, so a
new Megatron fails there first, with a readable message.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol

import torch

from tst_megatron import __version__

TESTED_MEGATRON = "0.19.2"

try:
    # Megatron warns of each optional package that is missing, up to twenty times; `versions.json` of a
    # run says it once.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        from megatron.core import parallel_state
        from megatron.core.datasets import utils as _dataset_utils
        from megatron.core.datasets.utils import Split
        from megatron.core.enums import ModelType
        from megatron.core.models.common.language_module.language_module import LanguageModule
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.core.optimizer import distrib_optimizer as _distrib_optimizer
        from megatron.core.rerun_state_machine import get_rerun_state_machine
        from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
        from megatron.core.tensor_parallel.mappings import (
            reduce_from_tensor_model_parallel_region,
            reduce_scatter_to_sequence_parallel_region,
        )
        from megatron.core.transformer import torch_norm as _torch_norm
        from megatron.core.utils import get_attr_wrapped_model
        from megatron.training import arguments as _arguments
        from megatron.training import get_args, get_timers
        from megatron.training import global_vars as _global_vars
        from megatron.training import training as _training
        from megatron.training.argument_utils import (
            gpt_config_from_args,
            pretrain_cfg_container_from_args,
        )
        from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
        from megatron.training.utils import is_first_or_last_pipeline_stage
except ImportError as error:
    raise ImportError(
        f"{error}. tst_megatron {__version__} is tested with Megatron-Core {TESTED_MEGATRON}."
    ) from error

__all__ = [
    "GPTModel",
    "GPTModelBuilder",
    "GPTModelConfig",
    "LanguageModule",
    "Split",
    "VocabParallelEmbedding",
    "get_args",
    "get_attr_wrapped_model",
    "get_rerun_state_machine",
    "get_timers",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
]

SPIKE_FACTOR = 10
"""A loss above this multiple of the largest seen is a spike; the factor of Megatron's GPT script."""


# --- arguments -----------------------------------------------------------------------------------


def argument_parser() -> argparse.ArgumentParser:
    """Megatron's own argument parser: the names, types and defaults that a recipe is checked by."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    _arguments.add_megatron_arguments(parser)
    return parser


def parse_arguments(flags: Sequence[str]) -> argparse.Namespace:
    """Parse and validate flags as Megatron does, and make them its global arguments."""
    with _command_line(flags):
        args: argparse.Namespace = _arguments.parse_and_validate_args()
    return args


def validate_arguments(flags: Sequence[str], *, world_size: int) -> argparse.Namespace:
    """Parse and validate flags for a job of ``world_size`` ranks without starting anything.

    Raises:
        AssertionError, ValueError, RuntimeError: what Megatron raises on a combination it refuses.
    """
    # Validation prints every argument.
    with _command_line(flags), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args: argparse.Namespace = _arguments.parse_args()
        args.rank, args.world_size = 0, world_size
        _arguments.validate_args(args)
    return args


@contextmanager
def _command_line(flags: Sequence[str]) -> Iterator[None]:
    # Megatron reads sys.argv and offers no other way in.
    before = sys.argv
    sys.argv = [before[0], *flags]
    try:
        yield
    finally:
        sys.argv = before


# --- where this process stands -------------------------------------------------------------------


def holds_a_batch(vp_stage: int | None) -> bool:
    """Whether this pipeline stage reads tokens: the first embeds them, the last predicts them."""
    return bool(is_first_or_last_pipeline_stage(vp_stage))


def tensor_parallel_rank() -> int:
    """Rank in the tensor-parallel group; rank 0 is the one that reads data."""
    return int(parallel_state.get_tensor_model_parallel_rank())


def broadcast_from_tensor_parallel_rank_0(tensor: torch.Tensor) -> torch.Tensor:
    """Give every tensor-parallel rank the tensor of rank 0, in place."""
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        source = parallel_state.get_tensor_model_parallel_src_rank()
        torch.distributed.broadcast(tensor, source, group=group)
    return tensor


def current_device() -> Any:
    """The device of this rank's model, as ``Tensor.to`` takes it."""
    return torch.cuda.current_device()


def end_of_document_id() -> int:
    """The token that ends every document of the training text."""
    return int(_global_vars.get_tokenizer().eod)


def device_name() -> str:
    """The name of this rank's accelerator, for the run's records."""
    return torch.cuda.get_device_name()


# --- one run -------------------------------------------------------------------------------------


class StepObserver(Protocol):
    """What training tells of itself while it runs."""

    def on_step(self, step: int, seconds: float, scalars: Mapping[str, float]) -> None:
        """After each optimizer step: steps completed, its duration, what Megatron logged of it."""

    def on_validation(self, step: int, scalars: Mapping[str, float]) -> None:
        """After each evaluation."""


def run_pretraining(
    args: argparse.Namespace,
    *,
    model_config_class: type[Any],
    datasets: Callable[..., Any],
    forward_step: Callable[..., Any],
) -> None:
    """Run Megatron's own training loop on a model, data and step of ours."""
    model_config = gpt_config_from_args(args, model_config_cls=model_config_class)
    container = pretrain_cfg_container_from_args(args, model_config)
    datasets.is_distributed = True  # type: ignore[attr-defined]
    _training.pretrain(
        cfg_container=container,
        train_valid_test_dataset_provider=datasets,
        model_type=ModelType.encoder_or_decoder,
        forward_step_func=forward_step,
    )


def tensorboard_writer() -> Any:
    """Megatron's TensorBoard writer, or None on every rank but the last."""
    return _global_vars.get_tensorboard_writer()


def wandb_writer() -> Any:
    """Megatron's Weights & Biases run, or None."""
    return _global_vars.get_wandb_writer()


def teraflops_per_device(args: argparse.Namespace, seconds: float) -> float:
    """TFLOP/s per device of a step, by Megatron's own count of a step's FLOPs."""
    operations = _training.num_floating_point_operations(args, args.global_batch_size)
    return float(operations / seconds / args.world_size / 1e12)


def observe_training(observer: StepObserver | None, *, loss_names: Sequence[str]) -> None:
    """Report every step and every evaluation of this process's run to ``observer``.

    Wraps three functions of ``megatron.training.training``: upstream has no callback. Remove when it
    has one for training steps.

    Args:
        observer: of the last rank, where the loss is; None on the others.
        loss_names: loss curves of ours. Megatron's log goes on printing a curve that has ended as
            0.000000E+00, so those without a value in this step are taken out of its totals.
    """
    scalars: dict[str, float] = {}
    seconds = 0.0

    def timed(train_step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train_step)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal seconds
            start = time.perf_counter()
            result = train_step(*args, **kwargs)
            seconds = time.perf_counter() - start
            return result

        return wrapper

    def reported(training_log: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(training_log)

        @functools.wraps(training_log)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs).arguments
            losses, totals = call["loss_dict"], call["total_loss_dict"]
            for name in loss_names:
                if name not in losses:
                    totals.pop(name, None)
            scalars.clear()
            result = training_log(*args, **kwargs)
            if observer is not None:
                observer.on_step(call["iteration"], seconds, dict(scalars))
            return result

        return wrapper

    def validated(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(evaluate)

        @functools.wraps(evaluate)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            scalars.clear()
            result = evaluate(*args, **kwargs)
            if observer is not None and scalars:
                observer.on_validation(
                    signature.bind(*args, **kwargs).arguments["iteration"], dict(scalars)
                )
            return result

        return wrapper

    _wrap(_training, "train_step", timed)
    _wrap(_training, "training_log", reported)
    _wrap(_training, "evaluate_and_print_results", validated)
    writer = tensorboard_writer()
    if writer is not None:
        _collect_scalars(writer, scalars)


def _collect_scalars(writer: Any, scalars: dict[str, float]) -> None:
    """Also keep what Megatron writes to TensorBoard, so both records have one source."""
    add_scalar = writer.add_scalar

    def add_and_keep(tag: str, value: Any, *args: Any, **kwargs: Any) -> None:
        scalars[tag] = float(value)
        add_scalar(tag, value, *args, **kwargs)

    writer.add_scalar = add_and_keep


def request_stop() -> None:
    """Make Megatron save and stop all ranks together at the end of this step.

    Its timed exit is agreed on by all ranks after every step and every evaluation iteration, so it is
    enough that one of them runs out of time.
    """
    get_args().exit_duration_in_mins = 1e-9


# --- workarounds ---------------------------------------------------------------------------------


def allow_no_cuda() -> None:
    """Let ``pretrain`` start without CUDA: it does not pass ``allow_no_cuda`` on.

    Remove when it does.
    """

    def permissive(initialize_megatron: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(initialize_megatron, allow_no_cuda=True)

    _wrap(_training, "initialize_megatron", permissive)


def repair_wheel() -> None:
    """Mend what the wheel gets wrong without Transformer Engine or Apex, on any device."""
    _wrap(_dataset_utils, "compile_helpers", _unless_compiled)
    _wrap(_torch_norm.WrappedTorchNorm, "__new__", _with_sequence_parallel)
    if not _distrib_optimizer.HAVE_APEX_OR_TE:
        optimizer = _distrib_optimizer.DistributedOptimizer
        _wrap(optimizer, "sharded_state_dict", _from_empty_state)
        _wrap(optimizer, "load_state_dict", _with_a_step_of_its_own)
        _wrap(optimizer, "_set_main_param_and_optimizer_states", _without_step)


def _unless_compiled(compile_helpers: Callable[[], None]) -> Callable[[], None]:
    """The wheel has the compiled helpers but no Makefile, and ``make`` failing ends the process.

    Remove when the wheel skips the build by itself.
    """

    def compile_if_missing() -> None:
        try:
            importlib.import_module("megatron.core.datasets.helpers_cpp")
        except ImportError:
            compile_helpers()

    return compile_if_missing


def _with_sequence_parallel(new: Callable[..., Any]) -> Callable[..., Any]:
    """``WrappedTorchNorm`` asserts against sequence parallelism, which only marks its parameters.

    Remove when it accepts ``sequence_parallel``.
    """

    def build(cls: Any, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        if not config.sequence_parallel:
            return new(cls, config, hidden_size, eps, **kwargs)
        if config.normalization != "RMSNorm":
            raise ValueError(
                f"normalization {config.normalization}: with sequence parallelism and without "
                "Transformer Engine only RMSNorm is available"
            )
        norm = torch.nn.RMSNorm(hidden_size, eps=eps)
        norm.weight.sequence_parallel = True
        return norm

    return build


def _from_empty_state(sharded_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """A fresh process has no Adam state when it loads, and the optimizer asserts on its step.

    Remove when ``DistributedOptimizer.state_dict`` accepts empty state without Apex and TE.
    """
    signature = inspect.signature(sharded_state_dict)

    @functools.wraps(sharded_state_dict)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_loading = signature.bind(self, *args, **kwargs).arguments.get("is_loading", False)
        if is_loading and not self.optimizer.state:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return sharded_state_dict(self, *args, **kwargs)

    return wrapper


def _with_a_step_of_its_own(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Loading gives all parameters one step tensor, so Adam counts each step once per parameter.

    Remove when ``DistributedOptimizer.load_state_dict`` clones it.
    """

    @functools.wraps(load_state_dict)
    def wrapper(self: Any, state_dict: Any) -> None:
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    return wrapper


def _without_step(set_states: Callable[..., Any]) -> Callable[..., Any]:
    """The step is loaded with the parameter groups; here it would be set back to that of the file
    or of the empty state, depending on the format.

    Remove when the loop skips the key ``step``, as the one that saves does.
    """

    @functools.wraps(set_states)
    def wrapper(self: Any, model_param: Any, tensors: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return set_states(self, model_param, {**tensors, "step": None})

    return wrapper


def _wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an upstream attribute by a wrapper of it, once; the original stays reachable."""
    original = getattr(owner, name)
    if getattr(original, "tst_megatron_original", None) is not None:
        return
    replacement = make(original)
    replacement.tst_megatron_original = original
    setattr(owner, name, replacement)
