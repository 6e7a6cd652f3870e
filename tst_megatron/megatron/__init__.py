"""The seam with Megatron: the only room, with ``host/cpu.py``, that knows its unstable names.

Every name used elsewhere is imported or wrapped here: ``names.py`` imports them, ``training.py``
says them in our words, ``writers.py`` has the writers of curves, ``optimizer.py`` changes
parameters in every copy, ``saving.py`` follows saves, ``loading.py`` loads, ``reading.py`` checks
what is read, ``checkpoint.py`` reads what a run saved, ``trainer.py`` takes single steps,
``initial_weights.py`` draws the weights of a new run on the CPU host, ``repairs.py`` has every
workaround with the condition for its removal.
``tests/megatron/megatron/test_upstream_contract.py`` pins each signature that is relied on, so a new
Megatron fails there first, with a readable message.

Importing this room imports Megatron, so on a machine without CUDA the CPU host comes first.
"""

from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.megatron.initial_weights import draw_by_place
from tst_megatron.megatron.distributed_checkpoint.loading import NothingToLoad, observe_loading
from tst_megatron.megatron.names import (
    TESTED_MEGATRON,
    GPTModel,
    GPTModelBuilder,
    GPTModelConfig,
    LanguageModule,
    Split,
    VocabParallelEmbedding,
    get_args,
    get_attr_wrapped_model,
    get_rerun_state_machine,
    get_timers,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from tst_megatron.megatron.optimizer import assign, gather_parameters, optimizers_of, start_anew
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked
from tst_megatron.megatron.repairs.repairs import (
    allow_no_cuda,
    checkpoint_worker,
    end_checkpoint_worker,
    gpt_config_from_args,
    repair_wheel,
)
from tst_megatron.megatron.distributed_checkpoint.saving import (
    observe_saving,
    reason_of,
    take_retention,
)
from tst_megatron.megatron.single_step import (
    Trainer,
    make_ready_for_steps,
    plain_embedding,
    pretraining_sampler,
    single_label_cross_entropy,
)
from tst_megatron.megatron.loop import (
    SPIKE_FACTOR,
    StepObserver,
    argument_parser,
    broadcast_from_tensor_parallel_rank_0,
    count_whole_evaluations,
    current_device,
    device_name,
    end_of_document_id,
    holds_a_batch,
    in_silence,
    observe_training,
    parse_arguments,
    refused_result,
    request_stop,
    run_pretraining,
    slices_of_this_context_parallel_rank,
    tensor_parallel_rank,
    tensor_parallel_size,
    teraflops_per_device,
    validate_arguments,
    validate_configurations,
)
from tst_megatron.megatron.writers import (
    drop_tensorboard_after,
    hold_wandb_back,
    start_wandb,
    tensorboard_writer,
    wandb_writer,
)

__all__ = [
    "SPIKE_FACTOR",
    "CheckpointException",
    "TESTED_MEGATRON",
    "GPTModel",
    "GPTModelBuilder",
    "GPTModelConfig",
    "LanguageModule",
    "NothingToLoad",
    "Split",
    "StepObserver",
    "Trainer",
    "VocabParallelEmbedding",
    "allow_no_cuda",
    "assign",
    "gather_parameters",
    "optimizers_of",
    "start_anew",
    "argument_parser",
    "broadcast_from_tensor_parallel_rank_0",
    "checkpoint_worker",
    "count_whole_evaluations",
    "current_device",
    "device_name",
    "draw_by_place",
    "drop_tensorboard_after",
    "end_checkpoint_worker",
    "end_of_document_id",
    "get_args",
    "get_attr_wrapped_model",
    "get_rerun_state_machine",
    "get_timers",
    "gpt_config_from_args",
    "hold_wandb_back",
    "holds_a_batch",
    "in_silence",
    "make_ready_for_steps",
    "observe_loading",
    "observe_saving",
    "observe_training",
    "parse_arguments",
    "plain_embedding",
    "pretraining_sampler",
    "reason_of",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "refused_result",
    "repair_wheel",
    "request_stop",
    "run_pretraining",
    "single_label_cross_entropy",
    "slices_of_this_context_parallel_rank",
    "start_wandb",
    "take_retention",
    "tensor_parallel_rank",
    "tensor_parallel_size",
    "tensorboard_writer",
    "teraflops_per_device",
    "validate_arguments",
    "validate_configurations",
    "wandb_writer",
]

# Whoever knows this room reads checkpoints so: that nothing in them runs must not be asked for.
read_checked()
