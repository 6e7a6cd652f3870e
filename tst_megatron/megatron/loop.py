"""Megatron's arguments, process groups and training loop, in our own words."""

from __future__ import annotations

import argparse
import copy
import functools
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

from tst_megatron.megatron import names
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked
from tst_megatron.megatron.repairs.repairs import gpt_config_from_args
from tst_megatron.megatron.wrapping import wrap
from tst_megatron.megatron.writers import tensorboard_writer, wandb_writer
from tst_megatron.system.machine.node import host_name

# Whoever trains reads checkpoints so: that nothing in them runs must not be asked for.
read_checked()

SPIKE_FACTOR = 10
"""A loss above this multiple of the largest seen is a spike; the factor of Megatron's GPT
script."""


@contextmanager
def in_silence() -> Iterator[None]:
    """Without the hundreds of lines that Megatron prints of its arguments, buckets and options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- arguments -----------------------------------------------------------------------------------


def argument_parser() -> argparse.ArgumentParser:
    """Megatron's own argument parser: the names, types and defaults that a recipe is checked by."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    names.arguments.add_megatron_arguments(parser)
    return parser


def parse_arguments(flags: Sequence[str]) -> argparse.Namespace:
    """Parse and validate flags as Megatron does, and make them its global arguments."""
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
    """Make of validated arguments what a job makes of them first, which has checks of its own.

    Raises:
        AssertionError, ValueError, RuntimeError: what the configuration of the model or of data
            parallelism refuses.
    """
    with in_silence(), transformer_engine_of_the_job():
        gpt_config_from_args(copy.copy(args)).finalize()
        names.training.get_megatron_ddp_config(args)


@contextmanager
def _architecture_of_the_job(args: argparse.Namespace) -> Iterator[None]:
    """Answer validation's questions for the GPU on a machine that has none, as login nodes do.

    The newest architecture is answered: what depends on an older one is asked again when the job
    starts. Remove when validation does not touch the device.
    """
    before = names.arguments.get_device_arch_version, torch.cuda.get_device_capability
    if not torch.cuda.is_available():
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


# --- where this process stands -------------------------------------------------------------------


def holds_a_batch(vp_stage: int | None) -> bool:
    """Whether this pipeline stage reads tokens: the first embeds them, the last predicts them.

    One with heads for multi-token prediction, which a layout may put in the middle, embeds them
    again.
    """
    return bool(names.is_first_or_last_pipeline_stage(vp_stage)) or _has_heads(vp_stage)


def _has_heads(vp_stage: int | None) -> bool:
    args = names.get_args()
    layout = args.pipeline_model_parallel_layout
    if isinstance(layout, str):
        # The model's configuration has it parsed, the arguments have not.
        layout = names.PipelineParallelLayerLayout.from_str(
            layout=layout, pipeline_model_parallel_size=args.pipeline_model_parallel_size
        )
    return bool(
        names.mtp_on_this_rank(
            layout=layout,
            mtp_num_layers=args.mtp_num_layers,
            ignore_virtual=False,
            vp_stage=vp_stage,
        )
    )


def tensor_parallel_size() -> int:
    """Ranks that share one copy of a pipeline stage."""
    return int(names.parallel_state.get_tensor_model_parallel_world_size())


def tensor_parallel_rank() -> int:
    """Rank in the tensor-parallel group; rank 0 is the one that reads data."""
    return int(names.parallel_state.get_tensor_model_parallel_rank())


def broadcast_from_tensor_parallel_rank_0(tensor: torch.Tensor) -> torch.Tensor:
    """Give every tensor-parallel rank the tensor of rank 0, in place."""
    group = names.parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        source = names.parallel_state.get_tensor_model_parallel_src_rank()
        torch.distributed.broadcast(tensor, source, group=group)
    return tensor


def slices_of_this_context_parallel_rank(
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """What this context-parallel rank has of tensors [B, L, ...]: two chunks of its positions.

    Causal attention costs more the later a position is, so of 2C chunks rank r takes chunk r and
    chunk 2C-1-r (Megatron's order, which its rotary embedding and the attention kernels share).

    Args:
        tensors: of one shape up to L, which 2C divides. No attention mask: its positions are not
            those of dimension 1.

    Returns:
        [B, L / C, ...] tensors under the same names; with one rank, the tensors as they are.
    """
    assert "attention_mask" not in tensors
    sliced: dict[str, torch.Tensor] = names.get_batch_on_this_cp_rank(
        dict(tensors),
        is_hybrid_cp=False,
        cp_group=names.parallel_state.get_context_parallel_group(),
    )
    return sliced


def current_device() -> Any:
    """The device of this rank's model, as ``Tensor.to`` takes it."""
    return torch.cuda.current_device()


def end_of_document_id() -> int:
    """The token that ends every document of the training text."""
    return int(names.global_vars.get_tokenizer().eod)


def device_name() -> str:
    """The name of this rank's accelerator, for the run's records."""
    return torch.cuda.get_device_name()


# --- one run -------------------------------------------------------------------------------------


class StepObserver(Protocol):
    """What training tells of itself while it runs."""

    def on_step(self, step: int, seconds: float, scalars: Mapping[str, float]) -> None:
        """After each optimizer step: steps completed, its duration, what Megatron logged of it."""

    def on_evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """After each evaluation, on validation or test text."""


def run_pretraining(
    args: argparse.Namespace,
    *,
    model_config: Any,
    datasets: Callable[..., Any],
    forward_step: Callable[..., Any],
) -> None:
    """Run Megatron's own training loop on a model, data and step of ours."""
    container = names.pretrain_cfg_container_from_args(args, model_config)
    datasets.is_distributed = True  # type: ignore[attr-defined]
    names.training.pretrain(
        cfg_container=container,
        train_valid_test_dataset_provider=datasets,
        model_type=names.ModelType.encoder_or_decoder,
        forward_step_func=forward_step,
    )


def count_whole_evaluations(args: argparse.Namespace) -> None:
    """Let the next evaluation begin at its first sample, also after one that a stop cut off.

    Megatron counts the samples that the cut-off one had read and would go on behind them for the
    rest of the run. Remove when it saves whole evaluations.
    """
    if args.eval_interval and args.eval_iters:
        per_evaluation = args.eval_iters * args.eval_global_batch_size
        args.consumed_valid_samples = args.iteration // args.eval_interval * per_evaluation


def teraflops_per_device(args: argparse.Namespace, seconds: float) -> float:
    """TFLOP/s per device of a step, by Megatron's own count of a step's FLOPs."""
    operations = names.training.num_floating_point_operations(args, args.global_batch_size)
    return float(operations / seconds / args.world_size / 1e12)


def observe_training(
    observer: StepObserver | None,
    *,
    loss_names: Sequence[str],
    before_step: Callable[[int, Sequence[Any], Any], None] | None = None,
) -> None:
    """Report every step and every evaluation of this process's run to ``observer``.

    Wraps three functions of ``megatron.training.training``: upstream has no callback. Remove when
    it has one for training steps.

    Args:
        observer: of the last rank, where the loss is; None on the others.
        loss_names: loss curves of ours. Megatron's log goes on printing a curve that has ended as
            0.000000E+00, so those without a value in this step are taken out of its totals.
        before_step: called on every rank before each step, with the number of steps completed, the
            model's chunks and the optimizer.
    """
    observation = _Observation(observer, loss_names, before_step)
    wrap(names.training, "train_step", observation.time_step)
    wrap(names.training, "training_log", observation.report_step)
    wrap(names.training, "evaluate_and_print_results", observation.report_validation)
    observation.follow_tensorboard()


class _Observation:
    """What has been seen of the step in progress, and the wrappers that see it."""

    def __init__(
        self,
        observer: StepObserver | None,
        loss_names: Sequence[str],
        before_step: Callable[[int, Sequence[Any], Any], None] | None,
    ) -> None:
        self._scalars: dict[str, float] = {}
        self._evaluated: dict[str, int] = {}
        self._is_evaluation = self._is_test = False
        self._follows_wandb = False
        self._seconds = 0.0
        self._learning_rate: float | None = None
        self._observer = observer
        self._loss_names = loss_names
        self._before_step = before_step

    def time_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(train_step)

        @functools.wraps(train_step)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs).arguments
            if self._before_step is not None:
                step = names.get_args().curr_iteration
                self._before_step(step, call["model"], call["optimizer"])
            self._learning_rate = _learning_rate(call["optimizer"])
            start = time.perf_counter()
            result = train_step(*args, **kwargs)
            self._seconds = time.perf_counter() - start
            return result

        return wrapper

    def report_step(self, training_log: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(training_log)

        @functools.wraps(training_log)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._follow_wandb()
            bound = signature.bind(*args, **kwargs)
            call = bound.arguments
            for name in self._loss_names:
                if name not in call["loss_dict"]:
                    call["total_loss_dict"].pop(name, None)
            # Megatron asks the scheduler after it has moved on: for the rate of the next step.
            call["learning_rate"] = self._learning_rate
            self._scalars.clear()
            result = training_log(*bound.args, **bound.kwargs)
            if self._observer is not None:
                self._observer.on_step(call["iteration"], self._seconds, dict(self._scalars))
            return result

        return wrapper

    def report_validation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(evaluate)

        @functools.wraps(evaluate)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._follow_wandb()
            call = signature.bind(*args, **kwargs).arguments
            self._scalars.clear()
            self._is_evaluation, self._is_test = True, "test set" in call["prefix"]
            result = evaluate(*args, **kwargs)
            self._is_evaluation = self._is_test = False
            if self._observer is not None and self._scalars:
                self._observer.on_evaluation(call["iteration"], dict(self._scalars))
            return result

        return wrapper

    def follow_tensorboard(self) -> None:
        """Also keep what Megatron writes to TensorBoard, so both records have one source.

        Two kinds of values are not written. Megatron evaluates once more after the last step, on
        the same positions. And it repeats curves over samples, which a resume could not cut: it
        names one step for all curves (``drop_tensorboard_after``).
        """
        tensorboard = tensorboard_writer()
        if tensorboard is None:
            return
        add_scalar = tensorboard.add_scalar

        def add_and_keep(tag: str, value: Any, global_step: int, *args: Any, **more: Any) -> None:
            name = self._named(tag)
            if name.endswith(" vs samples"):
                return
            self._scalars[name] = float(value)
            is_repeated = self._is_evaluation and self._evaluated.get(name) == global_step
            if self._is_evaluation:
                self._evaluated[name] = global_step
            if not is_repeated:
                add_scalar(name, value, global_step, *args, **more)

        tensorboard.add_scalar = add_and_keep

    def _follow_wandb(self) -> None:
        """Let Weights & Biases have the same names, once its run has been started."""
        wandb = wandb_writer()
        if wandb is None or self._follows_wandb:
            return
        self._follows_wandb = True
        log = wandb.log

        def log_named(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
            log({self._named(tag): value for tag, value in values.items()}, *args, **kwargs)

        wandb.log = log_named

    # Megatron calls the losses of the test set validation losses; here they have their own name.
    def _named(self, tag: str) -> str:
        return tag.replace(" validation", " test") if self._is_test else tag


def _learning_rate(optimizer: Any) -> float | None:
    """The rate of an optimizer's next step, as a number: Megatron may change a tensor in place."""
    if optimizer is None:
        return None
    rate = names.training.get_canonical_lr_for_logging(optimizer.param_groups)
    return None if rate is None else float(rate)


def refused_result() -> tuple[str, str | None, str]:
    """Ask all ranks which result was refused, where, and how far the search for the cause is.

    Every rank calls this together, after Megatron has ended the run for such a result.

    Returns:
        The message of the check, the node that made it (as Slurm spells it; None where no rank
        knows), and the name of the rerun state machine's state.
    """
    machine = names.get_rerun_state_machine()
    # An older call may still be there, of a result that was let through.
    is_ours = machine.rerun_requested and machine.failed_validation_call is not None
    ours = (machine.failed_validation_call.caller.message, host_name()) if is_ours else None
    of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_ranks, ours)
    refused = [of_rank for of_rank in of_ranks if of_rank is not None]
    what, where = refused[0] if refused else ("an unexpected result", None)
    return what, where, machine.state.name


def request_stop() -> None:
    """Make Megatron save and stop all ranks together at the end of this step.

    Its timed exit is agreed on by all ranks after every step and every evaluation iteration, so it
    is enough that one of them runs out of time.
    """
    names.get_args().exit_duration_in_mins = 1e-9
