"""What ranks of real jobs hold after a step, told by the tensors that live in their processes."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch
from layouts import LENGTH, RECIPE, Layout
from tiny import VOCABULARY


def recipe(layout: Layout) -> dict[str, Any]:
    """The tiny model in a layout, with a vocabulary that no tokenizer file is needed for."""
    own = {"tokenizer-type": "NullTokenizer", "vocab-size": VOCABULARY - 1, "train-iters": 10**3}
    return {**RECIPE, "use-distributed-optimizer": True, **own, **layout.flags}


def real_states(layouts: list[Layout]) -> list[dict[str, int]]:
    """Take a step in each layout as one rank of it, and tell what this rank then holds."""
    return [_states(layout) for layout in layouts]


def _states(layout: Layout) -> dict[str, int]:
    import one_step

    from tst_megatron.megatron import names, single_step
    from tst_megatron.model.gpt import TSTGPTModelConfig
    from tst_megatron.recipe.tst_config import TSTConfig
    from tst_megatron.schedule import Phase, Schedule

    before = _living()
    args = one_step.start(recipe(layout))
    models, optimizer, _ = names.training.setup_model_and_optimizer(
        names.ModelType.encoder_or_decoder,
        cfg_container=names.pretrain_cfg_container_from_args(
            args, TSTGPTModelConfig.from_arguments(args, TSTConfig())
        ),
        pg_collection=names.ProcessGroupCollection.use_mpu_process_groups(),
    )
    config = single_step.make_ready_for_steps(args, models)
    config.grad_scale_func = optimizer.scale_loss
    schedule = Schedule(
        phases=(Phase(bag_size=1, first_step=0, num_steps=1),),
        num_latent_positions=LENGTH,
        global_batch_size=args.global_batch_size,
    )
    tokens = torch.randint(3, VOCABULARY - 1, (args.micro_batch_size, LENGTH + 1))
    batches = [itertools.repeat({"tokens": tokens}) for _ in models]
    one_step.forward_backward(args, models, schedule, batches)
    assert optimizer.step()[0]
    optimizer.zero_grad()
    del batches, tokens
    held = sum(size for key, size in _living().items() if key not in before)
    return {**_by_part(models, optimizer), "all": held}


def _by_part(models: list[Any], optimizer: Any) -> dict[str, int]:
    """What the rank's buffers and its optimizer say of themselves."""
    from tst_megatron.megatron.optimizer import optimizers_of

    buffers = [
        each for model in models for each in (*model.buffers, *model.expert_parallel_buffers)
    ]
    weights = [each for model in models for each in model.module.parameters()]
    flat = [each.param_data for each in buffers if each.param_data is not None]
    moments = copies = steps = 0
    for part in optimizers_of(optimizer):
        for state in part.optimizer.state.values():
            moments += state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
            steps += state["step"].nbytes
        for name in ("shard_fp32_from_float16_groups", "fp32_from_float16_groups"):
            copies += sum(each.nbytes for group in getattr(part, name, ()) for each in group)
    return {
        "parameters": sum(each.nbytes for each in flat or weights),
        "gradients": sum(each.grad_data.nbytes for each in buffers),
        "main_parameters": copies,
        "moments": moments,
        "steps": steps,
    }


def _living() -> dict[int, int]:
    """Bytes of every storage that a tensor of this process has, by its address."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        # Bytes are states of random number generators, which a GPU keeps on the host.
        if type(each) in (torch.Tensor, torch.nn.Parameter) and each.dtype != torch.uint8:
            for tensor in (each, each.grad):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found
