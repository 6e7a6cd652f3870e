"""What the switch makes new, in every copy: model, fp32 main shards, moments of each optimizer.

All layouts share one process group of two ranks.
"""

import pytest
import torch
from processes import run_ranks
from tiny import TINY

LENGTH, BAG, STEPS, SEED, LEARNING_RATE, STD = 8, 4, 3, 7, 1e-3, 0.02

EP2 = {"expert-model-parallel-size": 2}
OVERLAPS = {"overlap-grad-reduce": True, "overlap-param-gather": True}
CASES = {
    # name: changes to the recipe, (embeddings, optimizer)
    "EP2 fp32": ({**EP2}, (True, False)),
    "EP2 bf16": ({**EP2, "bf16": True}, (True, False)),
    "EP2 bf16 overlaps": ({**EP2, **OVERLAPS, "bf16": True}, (True, True)),
    "EP2 bf16 whole optimizer": ({**EP2, "bf16": True}, (False, True)),
    "EP2 fp32 whole optimizer": ({**EP2}, (False, True)),
    "DP2 bf16 not distributed": ({"use-distributed-optimizer": False, "bf16": True}, (True, True)),
    "DP2 fp32 not distributed": ({"use-distributed-optimizer": False}, (True, True)),
    "TP2 bf16": (
        {"tensor-model-parallel-size": 2, "sequence-parallel": True, "bf16": True},
        (True, False),
    ),
    "PP2 tied bf16": (
        {
            "pipeline-model-parallel-size": 2,
            "untie-embeddings-and-output-weights": False,
            "bf16": True,
        },
        (True, False),
    ),
}
NAMES = ("embedding.word_embeddings.weight", "output_layer.weight")


def reset_in_all_cases(tokenizer):
    return {name: reset_in(tokenizer, *case) for name, case in CASES.items()}


def reset_in(tokenizer, changes, resets):
    import one_step

    sizes = {"seq-length": LENGTH, "max-position-embeddings": LENGTH, "micro-batch-size": 2}
    fixed = {
        "tokenizer-type": "SentencePieceTokenizer",
        "tokenizer-model": tokenizer,
        "rerun-mode": "disabled",
        "dataloader-type": "single",
        "init-method-std": STD,
    }
    args = one_step.start({**TINY, **sizes, **fixed, "global-batch-size": 4, **changes})
    # After the CPU host is in place.
    from tst_megatron.training.resets import Resets, draw

    models = one_step.build(args)
    optimizer = make_optimizer(args, models)
    initial = snapshot(models, optimizer)
    for step in range(STEPS):
        train_once(args, models, optimizer, step)
    said = []
    embeddings, whole = resets
    reset = Resets(step=STEPS, embeddings=embeddings, optimizer=whole, seed=SEED, say=said.append)
    before = snapshot(models, optimizer)
    for other in (STEPS - 1, STEPS + 1):
        reset(other, models, optimizer)
    assert_equal(before, snapshot(models, optimizer))
    generator = torch.get_rng_state()
    reset(STEPS, models, optimizer)
    assert torch.equal(generator, torch.get_rng_state())
    after = snapshot(models, optimizer)
    train_once(args, models, optimizer, STEPS)
    drawn = {
        table.name: draw(
            table.name, (TINY["vocab-size"], TINY["hidden-size"]), table.initialise, seed=SEED
        )
        for model in models
        for table in unwrapped(model).vocabulary_tables()
    }
    return {
        "initial": initial,
        "before": before,
        "after": after,
        "later": snapshot(models, optimizer),
        "drawn": drawn,
        "said": said,
        "tp": (args.tensor_model_parallel_size, torch.distributed.get_rank()),
    }


def unwrapped(model):
    while hasattr(model, "module"):
        model = model.module
    return model


def make_optimizer(args, models):
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.training.training import get_megatron_optimizer_config

    config, overrides = get_megatron_optimizer_config(args)
    optimizer = get_megatron_optimizer(config, models, config_overrides=overrides)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return optimizer


def train_once(args, models, optimizer, step):
    import one_step

    from tst_megatron.schedule import Phase, Schedule

    schedule = Schedule(
        phases=(Phase(bag_size=BAG, first_step=0, num_steps=1),),
        num_latent_positions=LENGTH,
        global_batch_size=4,
    )
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, TINY["vocab-size"], (4, BAG * (LENGTH + 1)), generator=generator)
    batches = [{"tokens": part} for part in tokens.split(2)]
    one_step.forward_backward(args, models, schedule, [iter(batches) for _ in models])
    is_done, _, _ = optimizer.step()
    assert is_done


def snapshot(models, optimizer):
    """Every parameter, its fp32 main part on this rank, and all that torch's optimizers keep."""
    from tst_megatron.megatron.optimizer import optimizers_of

    parts = optimizers_of(optimizer)
    parameters, mains = {}, {}
    for model in models:
        for name, parameter in unwrapped(model).named_parameters():
            parameters[name] = parameter.detach().clone()
            found = [main_of(part, parameter) for part in parts]
            mains[name] = next((main for main in found if main is not None), None)
    states = [
        [{key: torch.as_tensor(value).clone() for key, value in state.items()} for state in of_part]
        for of_part in (part.optimizer.state.values() for part in parts)
    ]
    return {"parameters": parameters, "mains": mains, "states": states}


def main_of(part, parameter):
    """(start, values) of this rank's part of a parameter's fp32 copy, or None."""
    is_half = parameter.dtype == torch.bfloat16
    if not hasattr(part, "model_param_group_index_map"):
        main = parameter.main_param if is_half else parameter
        held = any(main is each for group in part.param_groups for each in group["params"])
        return (0, main.detach().flatten().clone()) if held else None
    if parameter not in part.model_param_group_index_map:
        return None
    own = part._get_model_param_range_map(parameter)["param"]
    main = parameter.main_param if is_half else parameter.detach().flatten()[own.start : own.end]
    assert main.dtype == torch.float32
    return own.start, main.detach().clone()


def assert_equal(one, two):
    for name, parameter in one["parameters"].items():
        assert torch.equal(parameter, two["parameters"][name])
        if one["mains"][name] is not None:
            assert torch.equal(one["mains"][name][1], two["mains"][name][1])
    assert_states_equal(one["states"], two["states"])


def assert_states_equal(one, two):
    for part, other in zip(one, two, strict=True):
        for state, changed in zip(part, other, strict=True):
            assert state.keys() == changed.keys()
            assert all(torch.equal(state[key], changed[key]) for key in state)


@pytest.fixture(scope="module")
def ranks(text):
    return run_ranks(reset_in_all_cases, 2, str(text / "tokenizer.model"), preload="preloaded")


def of_rank(rank, name):
    """The rows of the table that a parameter of a rank should hold after the reset."""
    drawn = rank["drawn"][
        "embeddings" if len(rank["drawn"]) == 1 or "embedding" in name else "output layer"
    ]
    size, number = rank["tp"]
    return drawn.chunk(size)[number if size > 1 else 0]


WITH_EMBEDDINGS = [name for name, (_, (embeddings, _)) in CASES.items() if embeddings]
WITH_OPTIMIZER = [name for name, (_, (_, optimizer)) in CASES.items() if optimizer]


@pytest.mark.parametrize("case", WITH_EMBEDDINGS)
def test_tables_are_the_new_initialisation_in_every_copy(ranks, case):
    num_tables, num_elements = 0, {}
    for rank in (rank[case] for rank in ranks):
        for name in set(NAMES) & set(rank["after"]["parameters"]):
            parameter, wanted = rank["after"]["parameters"][name], of_rank(rank, name)
            num_tables += 1
            assert torch.equal(parameter, wanted.to(parameter.dtype))
            assert (parameter - rank["initial"]["parameters"][name]).abs().max() > STD
            if (main := rank["after"]["mains"][name]) is not None:
                start, values = main
                num_elements[name] = num_elements.get(name, 0) + len(values)
                assert torch.equal(values, wanted.flatten()[start : start + len(values)])
    assert num_tables == (2 if case.startswith("PP2") else 4)
    # The shards of all ranks together are the whole table, or two where ranks hold copies.
    whole = TINY["vocab-size"] * TINY["hidden-size"]
    copies = 2 if "not distributed" in case else 1
    assert num_elements == dict.fromkeys(num_elements, copies * whole)


@pytest.mark.parametrize("case", WITH_EMBEDDINGS)
def test_main_weights_are_near_the_new_initialisation_one_step_later(ranks, case):
    for rank in (rank[case] for rank in ranks):
        for name in set(NAMES) & set(rank["later"]["parameters"]):
            wanted = of_rank(rank, name)
            drift = (rank["later"]["parameters"][name].float() - wanted).abs().max()
            # A step of Adam, weight decay, and the rounding of bf16.
            assert 0 < drift < 2 * LEARNING_RATE
            if (main := rank["later"]["mains"][name]) is not None:
                start, values = main
                moved = (values - wanted.flatten()[start : start + len(values)]).abs()
                assert 0 < moved.max() < 2 * LEARNING_RATE


def test_draws_have_the_spread_of_the_initialisation_and_differ(ranks):
    drawn = ranks[0]["EP2 bf16"]["drawn"]
    for table in drawn.values():
        assert table.std() == pytest.approx(STD, rel=0.02)
        assert abs(table.mean()) < STD / 50
    assert not torch.allclose(drawn["embeddings"], drawn["output layer"])
    for other in ranks:
        for case in ("EP2 bf16", "TP2 bf16"):
            assert torch.equal(other[case]["drawn"]["embeddings"], drawn["embeddings"])


@pytest.mark.parametrize("case", WITH_EMBEDDINGS)
def test_other_parameters_keep_their_bits_and_their_moments(ranks, case):
    _, (_, whole) = CASES[case]
    for rank in (rank[case] for rank in ranks):
        before, after = rank["before"], rank["after"]
        for name in set(before["parameters"]) - set(NAMES):
            if "overlaps" not in case:  # there, what the last step made is still to be gathered
                assert torch.equal(before["parameters"][name], after["parameters"][name])
            if before["mains"][name] is not None:
                assert torch.equal(before["mains"][name][1], after["mains"][name][1])
        if not whole:
            changed = sum(
                not torch.equal(state["exp_avg"], later["exp_avg"])
                for part, of_after in zip(before["states"], after["states"], strict=True)
                for state, later in zip(part, of_after, strict=True)
            )
            held = sum(after["mains"].get(name) is not None for name in NAMES)
            assert changed == held
            steps = [state["step"] for part in after["states"] for state in part]
            assert all(step == STEPS for step in steps)


@pytest.mark.parametrize("case", WITH_EMBEDDINGS)
def test_ranks_compute_with_what_the_main_shards_say(ranks, case):
    replicas = [rank[case]["after"]["parameters"] for rank in ranks]
    for rank in ranks:
        after = rank[case]["after"]
        for name, main in after["mains"].items():
            if main is not None:
                start, values = main
                for parameters in replicas if is_replicated(case, name) else [after["parameters"]]:
                    own = parameters[name].flatten()[start : start + len(values)]
                    assert torch.equal(own, values.to(own.dtype)), name


def is_replicated(case, name):
    return case.startswith(("EP2", "DP2")) and "experts.local" not in name


@pytest.mark.parametrize("case", WITH_EMBEDDINGS)
def test_moments_of_the_tables_are_zero(ranks, case):
    for rank in (rank[case] for rank in ranks):
        held = sum(rank["after"]["mains"].get(name) is not None for name in NAMES)
        zero = [
            all(not state[key].any() for key in ("exp_avg", "exp_avg_sq"))
            for part in rank["after"]["states"]
            for state in part
        ]
        assert sum(zero) >= held


@pytest.mark.parametrize("case", WITH_OPTIMIZER)
def test_moments_and_steps_are_zero_in_every_chained_optimizer(ranks, case):
    changes, (embeddings, _) = CASES[case]
    for rank in (rank[case] for rank in ranks):
        before, after, later = (rank[when]["states"] for when in ("before", "after", "later"))
        assert len(after) >= (2 if changes.get("expert-model-parallel-size") else 1)
        for part, of_before in zip(after, before, strict=True):
            assert part and any(state["exp_avg"].any() for state in of_before)
            for state in part:
                assert state["step"] == 0
                assert not state["exp_avg"].any() and not state["exp_avg_sq"].any()
        for part in later:
            assert all(state["step"] == 1 for state in part)
        if not embeddings:
            for name, parameter in rank["before"]["parameters"].items():
                assert torch.equal(parameter, rank["after"]["parameters"][name])


def test_log_says_what_was_reset(ranks):
    said = ranks[0]["EP2 bf16 overlaps"]["said"]
    assert said == [
        f"after step {STEPS}: embeddings and output layer drawn anew",
        f"after step {STEPS}: optimizer started anew",
    ]
