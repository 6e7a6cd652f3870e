"""Take Megatron's own training steps without its training loop, for benchmarks and tests."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked

# Megatron's setup loads a checkpoint if its arguments name one. Nothing in it may run.
read_checked()


class Trainer:
    """Model, optimizer and schedule as Megatron's loop sets them up, and its step on them.

    Nothing is saved or logged, and no data is opened.
    """

    def __init__(self, args: argparse.Namespace, model_config: Any) -> None:
        """Build model, optimizer and learning-rate schedule in this process.

        Args:
            args: parsed by ``parse_arguments``, in a process that has a rank.
            model_config: makes the model.
        """
        names.training.initialize_megatron()
        names.training.set_jit_fusion_options(tp_size=args.tensor_model_parallel_size)
        self.args = args
        self.models, self.optimizer, self._scheduler = names.training.setup_model_and_optimizer(
            names.ModelType.encoder_or_decoder,
            cfg_container=names.pretrain_cfg_container_from_args(args, model_config),
            pg_collection=names.ProcessGroupCollection.use_mpu_process_groups(),
        )
        args.curr_iteration = 0
        for model in self.models:
            model.train()
        self._config = make_ready_for_steps(args, self.models)
        self._config.grad_scale_func = self.optimizer.scale_loss

    def step(self, forward_step: Callable[..., Any], data: Iterator[Any]) -> dict[str, Any]:
        """Take one optimizer step; return the losses by name."""
        losses, *_ = names.training.train_step(
            forward_step,
            data,
            self.models,
            self.optimizer,
            self._scheduler,
            self._config,
            names.training.get_forward_backward_func(),
            iteration=0,
        )
        return dict(losses)


def make_ready_for_steps(args: argparse.Namespace, models: Sequence[Any]) -> Any:
    """Give the model's configuration what Megatron's loop gives it before the first step.

    Returns:
        That configuration.
    """
    config = names.get_model_config(models[0])
    config.finalize_model_grads_func = names.finalize_model_grads
    if args.overlap_grad_reduce:
        config.no_sync_func = _of_chunks(model.no_sync for model in models)
        if args.align_grad_reduce:
            config.grad_sync_func = _of_chunks(model.start_grad_sync for model in models)
    if args.overlap_param_gather and args.align_param_gather:
        config.param_sync_func = _of_chunks(model.start_param_sync for model in models)
    return config


def single_label_cross_entropy(logits: Any, targets: Any) -> Any:
    """Compute Megatron's fused cross-entropy of logits [N, V] with one label each, to compare."""
    group = names.parallel_state.get_tensor_model_parallel_group()
    return names.fused_vocab_parallel_cross_entropy(logits, targets, group)


def plain_embedding(weight: torch.nn.Parameter) -> Any:
    """Build Megatron's own word embeddings on a given table [V, H], to compare."""
    config = names.ModelParallelConfig(perform_initialization=False, use_cpu_initialization=True)
    embedding = names.VocabParallelEmbedding(
        1, weight.shape[1], init_method=lambda table: table, config=config
    )
    embedding.weight = weight
    return embedding


def pretraining_sampler(num_samples: int, *, micro_batch_size: int) -> Any:
    """Build Megatron's sampler of micro-batches for a job of one rank."""
    return names.MegatronPretrainingSampler(
        total_samples=num_samples,
        consumed_samples=0,
        micro_batch_size=micro_batch_size,
        data_parallel_rank=0,
        data_parallel_size=1,
    )


def _of_chunks(functions: Iterable[Any]) -> Any:
    functions = list(functions)
    return functions[0] if len(functions) == 1 else functions
