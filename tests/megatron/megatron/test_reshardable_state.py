"""The optimizer's state is saved and loaded element by element, with padding between its buckets.

Sizes are such that buckets of every layout end in padding. Each element of the state is a function
of its weight, so one at another place is seen: whatever was saved right in one layout and is read
right in another goes between any two. So each layout reads what it saved itself, and saves for and
reads from a hub, and not all from all. All layouts of one number of ranks share a process group.
"""

import itertools

import pytest
import torch
from layouts import EP2, PP2, RECIPE, TP2, VPP2
from processes import run_ranks

BUCKETS = {
    "use-distributed-optimizer": True,
    "dist-ckpt-optim-fully-reshardable": True,
    "overlap-grad-reduce": True,
    "overlap-param-gather": True,
    "ddp-bucket-size": 3000,
    # No multiple of 128 elements in one expert, and none in a layer's other parameters.
    "moe-ffn-hidden-size": 34,
    "num-experts": 6,
}
OTHER_BUCKETS = {"ddp-bucket-size": 700}
ONE_BUCKET = {"overlap-grad-reduce": False, "overlap-param-gather": False}
# Each bucket is padded to a multiple of 65,536, so rank 1 has nothing of the last one.
LARGE_PADDING = {"ddp-pad-buckets-for-high-nccl-busbw": True, "ddp-bucket-size": 40_000}
AT_ONE_RANK = {"distrib-optim-fully-reshardable-mem-efficient": True}
IN_BUCKETS = {"dist-ckpt-optim-fully-reshardable": False}
TIED = {"untie-embeddings-and-output-weights": False}

UNTIED_LAYOUTS = {
    1: {
        "one rank": {},
        "one rank, other buckets": OTHER_BUCKETS,
        "one rank, one bucket": ONE_BUCKET,
    },
    2: {
        "DP2": {},
        "DP2, large padding": LARGE_PADDING,
        "DP2, gathered at one rank": AT_ONE_RANK,
        "TP2": TP2,
        "PP2": PP2,
        "VPP2": VPP2,
        "EP2": EP2,
        "EP2, gathered at one rank": {**EP2, **AT_ONE_RANK, **OTHER_BUCKETS},
    },
}
OTHER_MODELS = {
    # Of each, what is saved in one layout is loaded in all.
    "tied": (TIED, {1: {"tied": {}}, 2: {"tied PP2": PP2, "tied DP2": {}}}),
    "bf16": ({"bf16": True}, {1: {"bf16": {}}, 2: {"bf16 EP2": EP2, "bf16 TP2": TP2}}),
    "in buckets": (IN_BUCKETS, {1: {"in buckets": {}}, 2: {"DP2 in buckets": {}}}),
}
MODELS = {"untied": ({}, UNTIED_LAYOUTS), **OTHER_MODELS}
LAYOUTS = {
    name: (model, num_ranks)
    for model, (_, layouts) in MODELS.items()
    for num_ranks, of_ranks in layouts.items()
    for name in of_ranks
}
HUBS = ("one rank", "EP2")
"""Of the model with the most layouts: one optimizer, and two."""
PAIRS = [
    (one, other)
    for one, other in itertools.product(LAYOUTS, repeat=2)
    if LAYOUTS[one][0] == LAYOUTS[other][0]
    and (one == other or LAYOUTS[one][0] != "untied" or {one, other} & set(HUBS))
]
"""(saved in, loaded in)"""
STEP = 3.0


def start(tokenizer, name):
    """(arguments, models, optimizer) of a layout, with weights of this rank's own."""
    import one_step

    model, num_ranks = LAYOUTS[name]
    changes, layouts = MODELS[model]
    flags = {**RECIPE, **BUCKETS, **changes, **layouts[num_ranks][name]}
    args = one_step.start({**flags, "tokenizer-model": tokenizer})
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.training.training import get_megatron_optimizer_config

    models = one_step.build(args)
    config, overrides = get_megatron_optimizer_config(args)
    return args, models, get_megatron_optimizer(config, models, config_overrides=overrides)


def main_of(weight):
    """The fp32 copy of a weight: in bf16 a number beside it that rounds to it."""
    return weight.float() * (1 + 2**-12) if weight.dtype == torch.bfloat16 else weight.clone()


def state_of(weight):
    main = main_of(weight)
    return {"param": main, "exp_avg": 2 * main, "exp_avg_sq": main**2}


def shards(models, optimizer):
    """Each parameter with this rank's part of its state, the tensors themselves."""
    from tst_megatron.megatron.optimizer import optimizers_of

    for part in optimizers_of(optimizer):
        for parameter in part.model_param_group_index_map:
            own = part._get_model_param_range_map(parameter)["param"]
            yield part, parameter, slice(own.start, own.end)


@torch.no_grad()
def fill(models, optimizer):
    """Other weights in every element, and their state."""
    for model in models:
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
    for part, parameter, own in shards(models, optimizer):
        group, order = part.model_param_group_index_map[parameter]
        main = part.optimizer.param_groups[group]["params"][order]
        state = {key: value.flatten()[own] for key, value in state_of(parameter).items()}
        main.copy_(state.pop("param"))
        part.optimizer.state[main] = {"step": torch.tensor(STEP), **state}


def sharded(args, models, optimizer, *, is_loading):
    from megatron.core.utils import unwrap_model
    from megatron.training import checkpointing

    metadata = checkpointing._build_sharded_state_dict_metadata(args)
    state = checkpointing.generate_state_dict(
        args,
        unwrap_model(models),
        optimizer,
        None,
        None,
        optim_sd_kwargs={"metadata": metadata, "is_loading": is_loading},
        model_sd_kwargs={"metadata": metadata},
    )
    return state, metadata


def save_all(tokenizer, folder, num_ranks):
    from megatron.core import dist_checkpointing

    found = {}
    for name in (name for name, (_, ranks) in LAYOUTS.items() if ranks == num_ranks):
        args, models, optimizer = start(tokenizer, name)
        fill(models, optimizer)
        (folder / name).mkdir(exist_ok=True)
        state, metadata = sharded(args, models, optimizer, is_loading=False)
        found[name] = compare_with_upstreams(optimizer, state, metadata)
        dist_checkpointing.save(state, str(folder / name), content_metadata=metadata)
    return found


def compare_with_upstreams(optimizer, state, metadata):
    """By optimizer: tensors that upstream alone saves wrong, what a repair of the repaired says."""
    from tst_megatron.megatron import names
    from tst_megatron.megatron.optimizer import optimizers_of
    from tst_megatron.megatron.repairs.reshardable_state import without_padding

    if metadata["distrib_optim_sharding_type"] != "fully_reshardable":
        return [], []
    owner = names.distrib_optimizer.DistributedOptimizer
    repaired = owner.sharded_param_state_fully_reshardable
    weights = {key: value for key, value in state.items() if key.startswith("model")}
    num_wrong, said = [], []
    for part in optimizers_of(optimizer):
        # Each call is one of all ranks, also where the first alone is given the state.
        right, of_upstream = (
            function(part, weights, False, metadata) or {}
            for function in (repaired, repaired.tst_megatron_original)
        )
        wrong = [
            tensor.key
            for index, tensors in right.items()
            for key, tensor in tensors.items()
            if not torch.equal(tensor.data, of_upstream[index][key].data)
        ]
        num_wrong.append(len(wrong))
        try:
            without_padding(repaired)(part, weights, False, metadata)
        except RuntimeError as error:
            said.append(str(error))
    return num_wrong, said


def load_all(tokenizer, folder, num_ranks):
    found = {}
    for name, (_, ranks) in LAYOUTS.items():
        if ranks == num_ranks:
            args, models, optimizer = start(tokenizer, name)
            for saved in (one for one, other in PAIRS if other == name):
                found[saved, name] = load(args, models, optimizer, folder / saved)
    return found


def load(args, models, optimizer, checkpoint):
    """(parameters, those among them with a wrong element) of this rank after a load."""
    from megatron.core import dist_checkpointing
    from megatron.core.utils import unwrap_model

    fill(models, optimizer)
    for part, parameter, _ in shards(models, optimizer):
        for tensor in part._get_main_param_and_optimizer_states(parameter).values():
            tensor.data.fill_(7.0)
        parameter.data.fill_(7.0)
    state, _ = sharded(args, models, optimizer, is_loading=True)
    loaded = dist_checkpointing.load(state, str(checkpoint))
    for index, model in enumerate(unwrap_model(models)):
        key = f"model{index}" if len(models) > 1 else "model"
        model.load_state_dict(loaded[key], strict=True)
    optimizer.load_state_dict(loaded["optimizer"])
    wrong, num_parameters = [], 0
    for part, parameter, own in shards(models, optimizer):
        num_parameters += 1
        tensors = part._get_main_param_and_optimizer_states(parameter)
        assert not parameter.eq(7.0).any()
        for key, value in state_of(parameter.detach()).items():
            if not torch.equal(tensors[key], value.flatten()[own]):
                wrong.append((parameter.shape, key))
        assert tensors["step"] == STEP
    return num_parameters, wrong


@pytest.fixture(scope="module")
def saved(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    found = {}
    for num_ranks in (1, 2):
        arguments = (str(text / "tokenizer.model"), folder, num_ranks)
        for of_rank in run_ranks(save_all, num_ranks, *arguments, preload="preloaded"):
            for name, of_layout in of_rank.items():
                found.setdefault(name, []).append(of_layout)
    return folder, found


@pytest.fixture(scope="module")
def loaded(text, saved):
    folder, _ = saved
    return [
        of_rank
        for num_ranks in (1, 2)
        for of_rank in run_ranks(
            load_all,
            num_ranks,
            str(text / "tokenizer.model"),
            folder,
            num_ranks,
            preload="preloaded",
        )
    ]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_state_that_was_saved_in_one_layout_is_that_of_the_weights_in_another(loaded, one, other):
    ranks = [of_rank[one, other] for of_rank in loaded if (one, other) in of_rank]
    assert len(ranks) == LAYOUTS[other][1]
    for num_parameters, wrong in ranks:
        assert num_parameters > 5
        assert wrong == []


def test_megatron_still_saves_the_state_at_wrong_offsets(saved):
    """Of each optimizer: that of the experts too, where they have one of their own."""
    ranks = {name: [num for num, _ in ranks] for name, ranks in saved[1].items()}
    wrong = {name: [sum(part) for part in zip(*nums, strict=True)] for name, nums in ranks.items()}
    assert wrong.pop("one rank, one bucket") == [0]
    assert wrong.pop("in buckets") == wrong.pop("DP2 in buckets") == []
    assert len(wrong["EP2"]) == 2
    assert all(parts and all(parts) for parts in wrong.values()), (
        f"{wrong}: Megatron cuts the gathered state at the right offsets now. Remove the repair, "
        "tst_megatron/megatron/repairs/reshardable_state.py, and what docs/resharding.md says of it"
    )


def test_state_that_is_not_the_one_in_memory_is_not_saved(saved):
    """As the repair would make it of a Megatron that has mended it."""
    said = [text for ranks in saved[1].values() for _, texts in ranks for text in texts]
    assert len(said) > 10
    assert all("is not the state in memory" in text for text in said)
