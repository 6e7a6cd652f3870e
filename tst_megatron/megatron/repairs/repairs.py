"""Every workaround for Megatron's wheel, each with the condition for its removal."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import multiprocessing
import queue
import threading
from collections.abc import Callable, Mapping
from multiprocessing.managers import SyncManager
from typing import Any

import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs.reshardable_state import without_padding
from tst_megatron.megatron.wrapping import wrap
from tst_megatron.system.processes.lock import join_with_parent
from tst_megatron.system.processes.signals import die_with_parent


def allow_no_cuda() -> None:
    """Let ``pretrain`` start without CUDA: it does not pass ``allow_no_cuda`` on.

    Remove when it does.
    """

    def permissive(initialize_megatron: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(initialize_megatron, allow_no_cuda=True)

    wrap(names.training, "initialize_megatron", permissive)


def repair_wheel() -> None:
    """Mend what the wheel gets wrong, on any device."""
    caller = names.async_utils.PersistentAsyncCaller
    if caller.async_loop is _loop_of_worker:
        # Not where the CPU host has put its own, which calls this one.
        caller.async_loop = staticmethod(checkpoint_worker)
    wrap(names.filesystem_async, "get_write_results_queue", _with_a_server_that_ends)
    wrap(caller, "schedule_async_call", _of_a_snapshot)
    wrap(caller, "_get_process", _with_joins_that_end)
    wrap(caller, "is_current_async_call_done", _unless_the_worker_died)
    wrap(names.async_utils.AsyncCallsQueue, "maybe_finalize_async_calls", _with_a_worker)
    wrap(names.dataset_utils, "compile_helpers", _unless_compiled)
    wrap(names.torch_norm.WrappedTorchNorm, "__new__", _with_sequence_parallel)
    wrap(names.ChainedOptimizer, "load_state_dict", _of_other_experts)
    optimizer = names.distrib_optimizer.DistributedOptimizer
    wrap(optimizer, "sharded_param_state_fully_reshardable", without_padding)
    if not names.distrib_optimizer.HAVE_APEX_OR_TE:
        wrap(optimizer, "sharded_state_dict", _from_empty_state)
        wrap(optimizer, "load_state_dict", _with_a_step_of_its_own)
        wrap(optimizer, "_set_main_param_and_optimizer_states", _without_step)


def gpt_config_from_args(args: argparse.Namespace, *, model_config_cls: Any = None) -> Any:
    """The configuration of a GPT that validated arguments mean, all of them.

    Megatron's function leaves two behind: ``te-rng-tracker``, without which the configuration
    refuses every CUDA graph, and ``rope-scaling-factor``, without which every model is scaled by 8.
    Remove each line when it takes that one along.
    """
    config = names.gpt_config_from_args(
        args, model_config_cls=model_config_cls or names.GPTModelConfig
    )
    config.transformer.use_te_rng_tracker = args.te_rng_tracker
    config.rope_scaling_factor = args.rope_scaling_factor
    return config


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
        norm.weight.sequence_parallel = True  # type: ignore[attr-defined]
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
    """The step is loaded with the parameter groups; here it would be set back to the empty state's.

    Remove when the loop skips the key ``step``, as the one that saves does.
    """

    @functools.wraps(set_states)
    def wrapper(self: Any, model_param: Any, tensors: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return set_states(self, model_param, {**tensors, "step": None})

    return wrapper


def _of_other_experts(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Expert parallelism gives the experts an optimizer of their own: two where there was one.

    The tensors of a fully reshardable checkpoint have the same names under both. What has another
    shape is the rest: step, learning rate and the like of each group of parameters. Remove when
    ``load_state_dict`` takes the state of one optimizer as that of two, and of two as that of one.
    """

    @functools.wraps(load_state_dict)
    def wrapper(self: Any, state_dict: Any) -> None:
        load_state_dict(self, as_optimizers(state_dict, len(self.chained_optimizers)))

    return wrapper


def as_optimizers(state: dict[Any, Any], num_optimizers: int) -> dict[Any, Any]:
    """The loaded state of one or two distributed optimizers, as that of as many as there are.

    Args:
        state: what of it is in the checkpoint has the saved number of optimizers, and the tensors
            that were asked for have this run's. One has no level of numbers.
        num_optimizers: of this run.
    """
    numbered = {key: value for key, value in state.items() if isinstance(key, int)}
    rest = {key: value for key, value in state.items() if key not in numbered}
    if not numbered or not rest or "optimizer" not in {**numbered[0], **rest}:
        # As many as there were, or state of no distributed optimizer, which upstream refuses.
        return state
    if num_optimizers == 1:
        # All groups of parameters of one optimizer are those of the dense one.
        return _with_groups_of_both({**numbered[0], **rest})
    return {number: _with_groups_of_both({**rest, **own}) for number, own in numbered.items()}


def _with_groups_of_both(state: dict[str, Any]) -> dict[str, Any]:
    """Each group of parameters also as one of experts, which is part of what it is looked up by."""
    groups = [
        {**group, "is_expert_parallel": is_of_experts}
        for group in state["optimizer"]["param_groups"]
        for is_of_experts in (False, True)
    ]
    return {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}


_loop_of_worker = names.async_utils.PersistentAsyncCaller.async_loop


def checkpoint_worker(*args: Any) -> None:
    """Megatron's own loop of the process that writes asynchronous saves, for as long as its rank.

    A rank that is killed would leave it waiting for ever, deaf to SIGTERM, or writing into a folder
    that a restarted run saves to. Remove when upstream's worker ends with its rank.
    """
    die_with_parent()
    # It writes until the kernel has ended it, which may be later than its rank's end.
    join_with_parent()
    _loop_of_worker(*args)


def _with_a_server_that_ends(get_write_results_queue: Callable[..., Any]) -> Callable[..., Any]:
    """Every save, synchronous too, has a process that serves a queue, and outlives a killed rank.

    Remove when upstream's ends with its rank.
    """

    @functools.wraps(get_write_results_queue)
    def wrapper(mp_mode: str = "spawn") -> Any:
        if names.filesystem_async._results_queue is None:
            manager = SyncManager(ctx=multiprocessing.get_context(mp_mode))
            manager.start(initializer=die_with_parent)
            # The queue keeps its manager.
            names.filesystem_async._results_queue = manager.Queue()
        return names.filesystem_async._results_queue

    return wrapper


def _of_a_snapshot(schedule_async_call: Callable[..., Any]) -> Callable[..., Any]:
    """The worker shares the memory of CPU tensors, so it would write what training makes of them.

    Remove when ``prepare_write_data`` copies every CPU tensor of an asynchronous save.
    """

    @functools.wraps(schedule_async_call)
    def wrapper(self: Any, async_req: Any) -> None:
        if async_req.preload_fn is not None:
            # Upstream's contract: the second argument is what `preload_fn` holds too.
            for _, _, (_, tensors) in async_req.async_fn_args[1]:
                tensors[:] = [
                    (item, tensor.clone() if tensor.is_cpu else tensor) for item, tensor in tensors
                ]
        schedule_async_call(self, async_req)

    return wrapper


def _with_joins_that_end(get_process: Callable[..., Any]) -> Callable[..., Any]:
    """The queues of the worker are joined without a limit, also when it is dead.

    Remove when upstream looks at the process while it waits.
    """

    @functools.wraps(get_process)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        process = get_process(*args, **kwargs)
        caller = names.async_utils.PersistentAsyncCaller
        for tasks in (caller._persistent_queue, caller._persistent_preload_q):
            tasks.join = functools.partial(_join, tasks, process)
        return process

    return wrapper


def _join(tasks: Any, process: Any) -> None:
    # In a thread, since a worker that is killed may take the queue's lock with it.
    waiter = threading.Thread(target=type(tasks).join, args=(tasks,), daemon=True)
    waiter.start()
    while waiter.is_alive():
        was_alive = process.is_alive()
        waiter.join(1.0)
        if waiter.is_alive() and not was_alive:
            _require(process)


def _unless_the_worker_died(is_done: Callable[..., Any]) -> Callable[..., Any]:
    """A dead worker is waited for without a limit.

    Remove when upstream looks at the process while it waits.
    """

    @functools.wraps(is_done)
    def wrapper(self: Any, blocking: bool = False, no_dist: bool = False) -> Any:
        while blocking and self.process and self.cur_item is None:
            # Asked first, so that a last word of the worker still counts.
            was_alive = self.process.is_alive()
            try:
                self.cur_item = self._persistent_comp_q.get(timeout=1.0)
            except queue.Empty:
                if not was_alive:
                    _require(self.process)
        return is_done(self, blocking, no_dist)

    return wrapper


def _with_a_worker(maybe_finalize: Callable[..., Any]) -> Callable[..., Any]:
    """A dead worker goes unnoticed until the next save, which would be lost.

    Remove when upstream looks at the process after each step.
    """

    @functools.wraps(maybe_finalize)
    def wrapper(self: Any, blocking: bool = False, no_dist: bool = False) -> Any:
        process = names.async_utils.PersistentAsyncCaller._persistent_process
        if process is not None:
            _require(process)
        return maybe_finalize(self, blocking, no_dist)

    return wrapper


def _require(process: Any) -> None:
    if not process.is_alive():
        raise RuntimeError(
            f"the checkpoint worker (process {process.pid}) ended with status {process.exitcode}: "
            "what it was writing is no checkpoint. Continue from the newest one"
        )


def end_checkpoint_worker() -> None:
    """End the worker of asynchronous saves, with no wait, if the run left one behind."""
    caller = names.async_utils.PersistentAsyncCaller
    for tasks in (caller._persistent_queue, caller._persistent_preload_q):
        if tasks is not None:
            # Nobody reads them any more.
            tasks.cancel_join_thread()
    owner = names.async_utils.AsyncCallsQueue._persistent_caller
    if owner is not None:
        owner.close(abort=True)
