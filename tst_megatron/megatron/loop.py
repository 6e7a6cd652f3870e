"""Run Megatron's training loop, watch every step of it, and stop it.

``run_pretraining`` is Megatron's ``pretrain`` on a model, data and step of ours.
``observe_training`` goes before it: Megatron has no callbacks, so three of its functions are
wrapped. ``request_stop`` ends the loop at the end of a step, and ``refused_result`` says why
Megatron ended it.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked
from tst_megatron.megatron.ranks import from_all_ranks
from tst_megatron.megatron.repairs.wrapping import wrap
from tst_megatron.megatron.writers import tensorboard_writer, wandb_writer
from tst_megatron.system.machine.node import host_name

# A training process loads checkpoints. Nothing in them may run, and nobody has to ask for that.
read_checked()

SPIKE_FACTOR = 10
"""A loss above this multiple of the largest seen is a spike; the factor of Megatron's GPT
script."""


class StepObserver(Protocol):
    """The functions that training calls while it runs."""

    def on_step(self, step: int, seconds: float, scalars: Mapping[str, float]) -> None:
        """Record an optimizer step.

        Args:
            step: steps completed, this one included.
            seconds: its duration.
            scalars: the curves that Megatron logged of it, by name.
        """

    def on_evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record an evaluation on validation or test text, after ``step`` completed steps."""


class EvaluationObserver(Protocol):
    """The functions that every rank calls around an evaluation, all together."""

    def begin(self, event: str) -> None:
        """Prepare for an evaluation on ``validation`` or ``test`` text."""

    def end(self) -> None:
        """Finish it; a stop may have cut it off."""


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

    Megatron counts the samples that the cut-off evaluation had read. All later evaluations would
    then begin behind them. Remove when it counts complete evaluations alone.
    """
    if args.eval_interval and args.eval_iters:
        per_evaluation = args.eval_iters * args.eval_global_batch_size
        args.consumed_valid_samples = args.iteration // args.eval_interval * per_evaluation


def flops_per_step(args: argparse.Namespace) -> float:
    """Return Megatron's own count of the floating-point operations of a step."""
    return float(names.training.num_floating_point_operations(args, args.global_batch_size))


def teraflops_per_device(args: argparse.Namespace, seconds: float) -> float:
    """Return the TFLOP/s per device of a step."""
    return flops_per_step(args) / seconds / args.world_size / 1e12


def observe_training(
    observer: StepObserver | None,
    *,
    loss_names: Sequence[str],
    before_step: Callable[[int, Sequence[Any], Any], None] | None = None,
    evaluations: EvaluationObserver | None = None,
) -> None:
    """Report every step and every evaluation of this process's run to ``observer``.

    Wraps three functions of ``megatron.training.training``: upstream has no callback. Remove when
    it has one for training steps.

    Args:
        observer: of the last rank, where the loss is; None on the others.
        loss_names: loss curves of ours. Megatron's log keeps printing a curve that has ended, as
            0.000000E+00, so those without a value in this step are taken out of its totals.
        before_step: called on every rank before each step, with the number of steps completed, the
            model's chunks and the optimizer.
        evaluations: called on every rank around each evaluation; its end comes before ``observer``
            is told.
    """
    observation = _Observation(observer, loss_names, before_step, evaluations)
    wrap(names.training, "train_step", observation.time_step)
    wrap(names.training, "training_log", observation.report_step)
    wrap(names.training, "evaluate_and_print_results", observation.report_validation)
    observation.follow_tensorboard()


class _Observation:
    """The step in progress as the wrappers have seen it, and the wrappers."""

    def __init__(
        self,
        observer: StepObserver | None,
        loss_names: Sequence[str],
        before_step: Callable[[int, Sequence[Any], Any], None] | None,
        evaluations: EvaluationObserver | None,
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
        self._evaluations = evaluations

    def time_step(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Measure a step, and call what must come before it."""
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
        """Tell the observer of a step what Megatron logs of it."""
        signature = inspect.signature(training_log)

        @functools.wraps(training_log)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._follow_wandb()
            bound = signature.bind(*args, **kwargs)
            call = bound.arguments
            for name in self._loss_names:
                if name not in call["loss_dict"]:
                    call["total_loss_dict"].pop(name, None)
            # Megatron asks after the scheduler has stepped, and would log the next step's rate.
            call["learning_rate"] = self._learning_rate
            self._scalars.clear()
            result = training_log(*bound.args, **bound.kwargs)
            if self._observer is not None:
                self._observer.on_step(call["iteration"], self._seconds, dict(self._scalars))
            return result

        return wrapper

    def report_validation(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        """Tell the observers of an evaluation, and what Megatron writes in it."""
        signature = inspect.signature(evaluate)

        @functools.wraps(evaluate)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._follow_wandb()
            call = signature.bind(*args, **kwargs).arguments
            self._scalars.clear()
            self._is_evaluation, self._is_test = True, "test set" in call["prefix"]
            if self._evaluations is not None:
                self._evaluations.begin("test" if self._is_test else "validation")
            result = evaluate(*args, **kwargs)
            self._is_evaluation = self._is_test = False
            if self._evaluations is not None:
                self._evaluations.end()
            if self._observer is not None and self._scalars:
                self._observer.on_evaluation(call["iteration"], dict(self._scalars))
            return result

        return wrapper

    def follow_tensorboard(self) -> None:
        """Keep every value that Megatron writes to TensorBoard, so both records have one source.

        Two kinds of values are not written. One is the evaluation after the last step, which
        repeats the one before on the same positions. The other is the copy of each curve over
        samples: a resume could not cut it, since it names one step for all curves
        (``drop_tensorboard_after``).
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
        """Give Weights & Biases the same names, once its run has been started."""
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
    """Return the rate of an optimizer's next step."""
    if optimizer is None:
        return None
    rate = names.training.get_canonical_lr_for_logging(optimizer.param_groups)
    # As a number: Megatron may change a tensor in place.
    return None if rate is None else float(rate)


def end_of_document_id() -> int:
    """Return the token id that ends each document of the training text."""
    return int(names.global_vars.get_tokenizer().eod)


def refused_result() -> tuple[str, str | None, str]:
    """Ask all ranks which result the rerun state machine refused, and on which node.

    All ranks call this together, after Megatron has ended the run for such a result.

    Returns:
        The message of the check, the node that computed the result (as Slurm spells it; None where
        no rank knows), and the name of the machine's state: how far its search for the cause is.
    """
    machine = names.get_rerun_state_machine()
    # The machine may still hold an older call, of a result that was let through.
    is_ours = machine.rerun_requested and machine.failed_validation_call is not None
    ours = (machine.failed_validation_call.caller.message, host_name()) if is_ours else None
    refused = [of_rank for of_rank in from_all_ranks(ours) if of_rank is not None]
    what, where = refused[0] if refused else ("an unexpected result", None)
    return what, where, machine.state.name


def request_stop() -> None:
    """Make Megatron save and stop all ranks together at the end of this step.

    After every step and every evaluation iteration all ranks agree on Megatron's timed exit. So it
    is enough that one of them runs out of time.
    """
    names.get_args().exit_duration_in_mins = 1e-9
