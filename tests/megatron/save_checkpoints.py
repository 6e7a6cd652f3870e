"""Save small checkpoints of every family from two ranks; run by hf_checkpoints.py.

Usage: save_checkpoints.py FOLDER, with RANK in the environment. FOLDER/tokenizer.model must exist.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tst_megatron.megatron.cpu import host

EXPERTS = """
--qk-layernorm --moe-ffn-hidden-size 40 --moe-router-topk 2 --moe-router-dtype fp32
--moe-aux-loss-coeff 0.01 --moe-token-dispatcher-type alltoall
"""
COMMON = """
--hidden-size 64 --group-query-attention --ffn-hidden-size 96
--normalization RMSNorm --norm-epsilon 1e-6 --swiglu
--disable-bias-linear --position-embedding-type rope --rotary-base 500000 --seq-length 64
--max-position-embeddings 64 --micro-batch-size 1 --global-batch-size 2 --train-iters 4 --lr 1e-3
--ckpt-format torch_dist --transformer-impl local --use-cpu-initialization
--attention-backend unfused --distributed-backend gloo --no-masked-softmax-fusion
--no-bias-dropout-fusion --no-rope-fusion --no-bias-swiglu-fusion --no-gradient-accumulation-fusion
--no-persist-layer-norm
"""
NO_TOKENIZER = "--tokenizer-type NullTokenizer"
LAYOUTS = {
    # Head size is not hidden / heads, and 1000 tokens are padded to 1024.
    "ep2": f"{EXPERTS} --num-layers 2 --expert-model-parallel-size 2 "
    "--num-experts 6 --num-attention-heads 6 "
    "--num-query-groups 3 --kv-channels 24 --untie-embeddings-and-output-weights "
    "--tokenizer-type SentencePieceTokenizer --tokenizer-model {tokenizer} "
    "--padded-vocab-size 1024",
    "tp2_tied_mixed": f"{EXPERTS} --num-layers 2 --tensor-model-parallel-size 2 "
    "--sequence-parallel --num-experts 3 "
    "--num-attention-heads 4 --num-query-groups 2 --kv-channels 16 --moe-router-pre-softmax "
    f"--moe-layer-freq [0,1] {NO_TOKENIZER} --vocab-size 999",
    "pp2_bf16": f"{EXPERTS} --num-layers 2 --pipeline-model-parallel-size 2 "
    "--num-experts 4 --num-attention-heads 4 "
    "--num-query-groups 2 --kv-channels 16 --untie-embeddings-and-output-weights --bf16 "
    f"{NO_TOKENIZER} --vocab-size 1000",
    # Two chunks of one layer on each stage.
    "vpp2": f"{EXPERTS} --num-layers 4 --pipeline-model-parallel-size 2 "
    "--num-virtual-stages-per-pipeline-rank 2 --num-experts 6 --num-attention-heads 3 "
    "--num-query-groups 1 --kv-channels 16 --untie-embeddings-and-output-weights "
    f"{NO_TOKENIZER} --vocab-size 1000",
    "tp2_qwen3": "--qk-layernorm --num-layers 2 --tensor-model-parallel-size 2 "
    "--num-attention-heads 6 --num-query-groups 2 --kv-channels 24 "
    f"--untie-embeddings-and-output-weights {NO_TOKENIZER} --vocab-size 1000",
    "dp2_qwen3_tied": "--qk-layernorm --num-layers 2 --num-attention-heads 5 "
    f"--num-query-groups 5 --kv-channels 8 {NO_TOKENIZER} --vocab-size 1000",
    "pp2_llama_tied": "--hidden-size 72 --num-layers 2 --pipeline-model-parallel-size 2 "
    "--num-attention-heads 9 "
    "--num-query-groups 3 --kv-channels 16 --use-rope-scaling --rope-scaling-factor 4 "
    f"{NO_TOKENIZER} --vocab-size 1000",
    "tp2_llama": "--num-layers 2 --tensor-model-parallel-size 2 --num-attention-heads 4 "
    "--num-query-groups 4 --kv-channels 16 --untie-embeddings-and-output-weights "
    f"{NO_TOKENIZER} --vocab-size 1000",
}


def main() -> None:
    """Save every layout."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    host.install()
    store = distributed.FileStore(str(folder / "store"), 2)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for number, (name, flags) in enumerate(LAYOUTS.items(), start=1):
        flags = f"{COMMON} {flags}".format(tokenizer=folder / "tokenizer.model")
        save(folder / name, flags.split(), iteration=3, seed=10 * number + rank)


def save(
    folder: Path,
    flags: list[str],
    *,
    iteration: int,
    seed: int,
    prepare: Callable[[Any], None] = lambda model: None,
) -> None:
    """Build a model as Megatron does, give it random weights, and save it as Megatron does.

    ``prepare`` is called with each part of the model before it is saved.
    """
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.models.gpt import GPTModelBuilder

    from tst_megatron.megatron import arguments

    args = arguments.validate_arguments(flags, world_size=2)
    args.padded_vocab_size = 1024
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    metadata = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    data_parallel = parallel_state.get_data_parallel_group(with_context_parallel=True)
    chunks = {}
    num_chunks = args.virtual_pipeline_model_parallel_size
    for chunk in range(num_chunks or 1):
        stage = chunk if num_chunks else None
        builder = GPTModelBuilder(gpt_config_from_args(args))
        model: Any = builder.build_model(groups, vp_stage=stage).to(args.params_dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Norms away from 1 and weights of some size, so that no mistake stays small.
                low, high = (0.5, 1.5) if "norm" in name else (-0.25, 0.25)
                parameter.uniform_(low, high)
        prepare(model)
        weights = model.sharded_state_dict(metadata={**metadata, "dp_cp_group": data_parallel})
        # As Megatron names the chunks of a stage.
        chunks[f"model{chunk}" if num_chunks else "model"] = weights
    target = folder / f"iter_{iteration:07d}"
    target.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    state = {"args": args, "checkpoint_version": 3.0, "iteration": iteration, **chunks}
    dist_checkpointing.save(state, str(target), content_metadata=metadata)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    parallel_state.destroy_model_parallel()


if __name__ == "__main__":
    main()
