"""Put the repairs of Megatron's wheel in place, once per process.

Most repairs are functions that take the faulty function and return the one to use instead. The
docstring of a repair says what the fault is, and when to remove it. To add one: give the faulty
name an import in ``megatron/names.py``, write a file here, and add its line to ``repair_wheel``.
``no_cuda`` and ``gpt_config`` are not applied here: their callers use them in place of Megatron's.
"""

from __future__ import annotations

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs import (
    async_snapshot,
    checkpoint_processes,
    compiled_helpers,
    dead_worker,
    expert_optimizers,
    reshardable_state,
    sequence_parallel_norm,
    torch_adam,
)
from tst_megatron.megatron.repairs.wrapping import wrap


def repair_wheel() -> None:
    """Repair what the wheel gets wrong on any device; a second call changes nothing."""
    # The processes that write checkpoints.
    caller = names.async_utils.PersistentAsyncCaller
    checkpoint_processes.end_worker_with_its_rank()
    wrap(
        names.filesystem_async,
        "get_write_results_queue",
        checkpoint_processes.with_a_server_that_ends,
    )
    wrap(caller, "schedule_async_call", async_snapshot.of_a_snapshot)
    wrap(caller, "_get_process", dead_worker.with_joins_that_end)
    wrap(caller, "is_current_async_call_done", dead_worker.unless_the_worker_died)
    wrap(names.async_utils.AsyncCallsQueue, "maybe_finalize_async_calls", dead_worker.with_a_worker)

    # Building data and model.
    wrap(names.dataset_utils, "compile_helpers", compiled_helpers.unless_compiled)
    wrap(names.torch_norm.WrappedTorchNorm, "__new__", sequence_parallel_norm.with_rms_norm)

    # Saving and loading the optimizer.
    wrap(names.ChainedOptimizer, "load_state_dict", expert_optimizers.of_other_experts)
    optimizer = names.distrib_optimizer.DistributedOptimizer
    wrap(optimizer, "sharded_param_state_fully_reshardable", reshardable_state.without_padding)
    if not names.distrib_optimizer.HAVE_APEX_OR_TE:
        wrap(optimizer, "sharded_state_dict", torch_adam.from_empty_state)
        wrap(optimizer, "load_state_dict", torch_adam.with_a_step_of_its_own)
        wrap(optimizer, "_set_main_param_and_optimizer_states", torch_adam.without_step)
