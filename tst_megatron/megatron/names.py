"""Import Megatron's unstable names, in one place and in silence.

Every other module of this project takes them from here, so that a name which a new Megatron has
moved or renamed is mended in one file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tst_megatron import __version__
from tst_megatron.megatron.silence import without_warnings
from tst_megatron.system.packages import collecting_later

TESTED_MEGATRON = "0.19.2"
"""The version of Megatron-Core that every name and signature here belongs to.

pyproject.toml pins the same one. ``tests/docs/test_megatron_version.py`` holds every other mention
of a version to it.
"""

_UNUSED = "modelopt"


class _Absent:
    """A finder of modules that reports one package as not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] == _UNUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def without_modelopt() -> Iterator[None]:
    """Let Megatron's modules be imported as where nvidia-modelopt is not installed.

    ``megatron.training`` tries to import it, and with it transformers, peft, scikit-learn and
    pandas: six of the nine CPU seconds that importing Megatron takes. Then it tries
    ``megatron.post_training``, which the wheel does not have, and continues without both. Remove
    when Megatron imports nvidia-modelopt where it is used; look again when the wheel has
    ``megatron.post_training`` (``tests/megatron/megatron/test_upstream_contract.py`` tells).
    """
    absent = _Absent()
    sys.meta_path.insert(0, absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(absent)  # type: ignore[arg-type]


try:
    # Megatron warns of each optional package that is missing, up to twenty times; `versions.json`
    # of a run says it once.
    with collecting_later(), without_warnings(), without_modelopt():
        from megatron.core import dist_checkpointing, parallel_state
        from megatron.core.datasets import utils as dataset_utils
        from megatron.core.datasets.utils import Split
        from megatron.core.dist_checkpointing import core as dist_core
        from megatron.core.dist_checkpointing import serialization as dist_serialization
        from megatron.core.dist_checkpointing import validation as dist_validation
        from megatron.core.dist_checkpointing.core import CheckpointingException
        from megatron.core.dist_checkpointing.strategies import async_utils, filesystem_async
        from megatron.core.dist_checkpointing.strategies import common as dist_common
        from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.enums import ModelType
        from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
        from megatron.core.model_parallel_config import ModelParallelConfig
        from megatron.core.models.common.language_module.language_module import LanguageModule
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.optimizer import distrib_optimizer
        from megatron.core.optimizer.optimizer import ChainedOptimizer
        from megatron.core.process_groups_config import ProcessGroupCollection
        from megatron.core.rerun_state_machine import get_rerun_state_machine
        from megatron.core.tensor_parallel import layers as tensor_parallel_layers
        from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
        from megatron.core.tensor_parallel.mappings import (
            reduce_from_tensor_model_parallel_region,
            reduce_scatter_to_sequence_parallel_region,
        )
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
        from megatron.core.transformer import torch_norm
        from megatron.core.transformer.dot_product_attention import DotProductAttention
        from megatron.core.transformer.moe.experts import SequentialMLP
        from megatron.core.transformer.moe.router import Router
        from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
        from megatron.core.transformer.pipeline_parallel_layer_layout import (
            PipelineParallelLayerLayout,
        )
        from megatron.core.transformer.transformer_layer import TransformerLayer
        from megatron.core.utils import (
            get_attr_wrapped_model,
            get_batch_on_this_cp_rank,
            get_model_config,
        )
        from megatron.training import arguments, get_args, get_timers, global_vars, training
        from megatron.training.argument_utils import (
            gpt_config_from_args,
            pretrain_cfg_container_from_args,
        )
        from megatron.training.datasets.data_samplers import MegatronPretrainingSampler
        from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
        from megatron.training.utils import is_first_or_last_pipeline_stage
except ImportError as error:
    raise ImportError(
        f"{error}. tst_megatron {__version__} is tested with Megatron-Core {TESTED_MEGATRON}."
    ) from error

__all__ = [
    "ChainedOptimizer",
    "CheckpointingException",
    "DotProductAttention",
    "GPTModel",
    "GPTModelBuilder",
    "GPTModelConfig",
    "LanguageModule",
    "MegatronPretrainingSampler",
    "ModelParallelConfig",
    "ModelType",
    "PipelineParallelLayerLayout",
    "ProcessGroupCollection",
    "Router",
    "SequentialMLP",
    "Split",
    "TorchDistLoadShardedStrategy",
    "TransformerLayer",
    "VocabParallelEmbedding",
    "arguments",
    "async_utils",
    "filesystem_async",
    "dataset_utils",
    "dist_checkpointing",
    "dist_common",
    "dist_core",
    "dist_serialization",
    "dist_validation",
    "distrib_optimizer",
    "finalize_model_grads",
    "fused_vocab_parallel_cross_entropy",
    "get_args",
    "get_attr_wrapped_model",
    "get_batch_on_this_cp_rank",
    "get_model_config",
    "get_rerun_state_machine",
    "get_timers",
    "global_vars",
    "gpt_config_from_args",
    "is_first_or_last_pipeline_stage",
    "model_parallel_cuda_manual_seed",
    "mtp_on_this_rank",
    "parallel_state",
    "pretrain_cfg_container_from_args",
    "reduce_from_tensor_model_parallel_region",
    "reduce_scatter_to_sequence_parallel_region",
    "tensor_parallel_layers",
    "torch_norm",
    "training",
]
