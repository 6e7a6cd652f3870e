"""Start a run of Transformer Engine's layers on the CPU, up to its first step, and save it.

Usage: te_start.py RECIPE FOLDER, with RANK, WORLD_SIZE and STORE (a file) in the environment.
Megatron builds model and optimizer and loads what the recipe starts from. Then the optimizer gets
moments, ``tst.reset-*`` are carried out if the recipe asks for them, and Megatron saves a
checkpoint of step 1.
"""

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import te_host


def main() -> None:
    te_host.install()
    import torch
    from torch import distributed

    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = distributed.FileStore(os.environ["STORE"], num_ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.training.checkpointing import save_checkpoint

    from tst_megatron.megatron import names
    from tst_megatron.megatron import optimizer as megatron_optimizer
    from tst_megatron.megatron.distributed_checkpoint import loading
    from tst_megatron.model.gpt import TSTGPTModelConfig
    from tst_megatron.recipe.recipe import load_recipe
    from tst_megatron.training.check.check_recipe import check_recipe
    from tst_megatron.training.resets import Resets

    recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
    checked = check_recipe(load_recipe(recipe), world_size=num_ranks)
    args = checked.arguments
    args.rank, args.local_rank = rank, 0
    args.use_cpu_initialization, args.save = True, str(folder)
    # A kernel quantises parameters when they are built.
    args.fp8_param_gather = args.reuse_grad_buf_for_mxfp8_param_ag = False
    names.parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        create_gloo_process_groups=True,
    )
    model_parallel_cuda_manual_seed(1)
    names.global_vars.set_args(args)
    names.global_vars._set_timers(args)
    init_num_microbatches_calculator(
        rank, None, args.global_batch_size, args.micro_batch_size, args.data_parallel_size, False
    )
    loading.observe_loading(0, None)
    config = TSTGPTModelConfig.from_arguments(args, checked.recipe.tst)
    model, optimizer, scheduler = names.training.setup_model_and_optimizer(
        names.ModelType.encoder_or_decoder,
        cfg_container=names.pretrain_cfg_container_from_args(args, config),
        pg_collection=names.ProcessGroupCollection.use_mpu_process_groups(),
    )
    for part in megatron_optimizer.optimizers_of(optimizer):
        for group in part.optimizer.param_groups:
            # As its first step would, which is a kernel.
            group["step"] = 1
            for parameter in group["params"]:
                part.optimizer.initialize_state(parameter, store_param_remainders=False)
                part.optimizer.state[parameter]["exp_avg"].fill_(0.5)
                part.optimizer.state[parameter]["exp_avg_sq"].fill_(0.25)
    for chunk in model:
        te_host.as_in_fp8(chunk, "DelayedScaling")
    tst = checked.recipe.tst
    said: list[str] = []
    resets = Resets(
        step=1,
        embeddings=tst.reset_embeddings,
        optimizer=tst.reset_optimizer,
        seed=args.seed,
        say=said.append,
    )
    resets(1, model, optimizer)
    save_checkpoint(1, model, optimizer, scheduler, 0)
    parts = megatron_optimizer.optimizers_of(optimizer)
    told = {
        "optimizers": [type(part.optimizer).__module__ for part in parts],
        "said": said,
        "classes": sorted({type(each).__name__ for chunk in model for each in chunk.modules()}),
    }
    folder.with_name(f"{folder.name}-{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
