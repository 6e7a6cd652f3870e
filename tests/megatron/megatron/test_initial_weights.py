"""Initial weights of the CPU host follow from seed and place in the model, from nothing else.

``test_layouts.py`` compares them in every parallel layout.
"""

import one_step
import pytest
import torch
from processes import run_ranks
from tiny import TINY

SAME = {
    "micro-batch 1": {"micro-batch-size": 1},
    "micro-batch 4": {"micro-batch-size": 4},
    "seq-length 16": {"seq-length": 16, "max-position-embeddings": 16},
    "seq-length 64": {"seq-length": 64, "max-position-embeddings": 64},
    "batch of 16": {"global-batch-size": 16},
    "more steps": {"train-iters": 40},
}
OTHER = {
    "padded vocabulary": {"padded-vocab-size": 640},
    "one layer more": {"num-layers": 3},
    "another seed": {"seed": 5},
    "shared expert, sinks, tied": {
        "moe-shared-expert-intermediate-size": 32,
        "moe-shared-expert-gate": True,
        "softmax-type": "learnable",
        "untie-embeddings-and-output-weights": False,
    },
}


def weights_of_all_cases(tokenizer):
    whole = {
        **TINY,
        "max-position-embeddings": TINY["seq-length"],
        "tokenizer-type": "SentencePieceTokenizer",
        "tokenizer-model": tokenizer,
    }
    cases = {"": {}, **SAME, **OTHER}
    return {name: drawn({**whole, **changes}) for name, changes in cases.items()}


def drawn(recipe):
    """The weights as a run builds them, and whether Megatron's start draws anything before."""
    from tst_megatron.megatron import names
    from tst_megatron.megatron.names import GPTModelBuilder
    from tst_megatron.megatron.repairs.gpt_config import gpt_config_from_args

    args = one_step.start(recipe)
    before = torch.get_rng_state()
    names.training.set_jit_fusion_options(tp_size=args.tensor_model_parallel_size)
    is_undisturbed = torch.equal(before, torch.get_rng_state())
    config = gpt_config_from_args(args)
    config.finalize()
    groups = names.ProcessGroupCollection.use_mpu_process_groups()
    model = GPTModelBuilder(config).build_model(groups)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return weights, is_undisturbed


@pytest.fixture(scope="module")
def cases(text):
    tokenizer = str(text / "tokenizer.model")
    (result,) = run_ranks(weights_of_all_cases, 1, tokenizer, preload="preloaded")
    return result


@pytest.mark.parametrize("name", SAME)
def test_weights_do_not_depend_on_sizes_of_a_step(cases, name):
    expected, weights = cases[""][0], cases[name][0]
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        assert torch.equal(weight, expected[key]), key


def test_start_draws_nothing_from_the_generator(cases):
    assert all(is_undisturbed for _, is_undisturbed in cases.values())


def test_padding_adds_rows_and_changes_none(cases):
    expected, weights = cases[""][0], cases["padded vocabulary"][0]
    for key, weight in weights.items():
        assert torch.equal(weight[: len(expected[key])], expected[key]), key
    assert len(weights["output_layer.weight"]) == 640


def test_every_random_weight_is_its_own(cases):
    """Two experts that start alike would be one expert until the router tells them apart."""
    for weights, _ in cases.values():
        of_matrices = [weight for weight in weights.values() if weight.dim() == 2]
        numbers = [weight.flatten()[:8].tolist() for weight in of_matrices]
        assert len({tuple(number) for number in numbers}) == len(of_matrices) > 20


def test_another_seed_gives_other_weights(cases):
    expected, weights = cases[""][0], cases["another seed"][0]
    same = [key for key, weight in weights.items() if torch.equal(weight, expected[key])]
    assert all("norm" in key for key in same)


def test_more_layers_and_other_parts_leave_the_rest_as_it_is(cases):
    expected = cases[""][0]
    weights = cases["shared expert, sinks, tied"][0]
    assert not weights.keys() >= expected.keys()
    assert any("gate_weight" in key for key in weights)
    assert any("softmax_offset" in key for key in weights)
    for key in weights.keys() & expected.keys():
        assert torch.equal(weights[key], expected[key]), key
    # Outputs into the residual stream are scaled by the depth; the rest is the same.
    deeper = cases["one layer more"][0]
    scaled = ("linear_proj.weight", "linear_fc2.weight")
    for key, weight in expected.items():
        assert torch.equal(weight, deeper[key]) != key.endswith(scaled), key
    assert any(key.startswith("decoder.layers.2.") for key in deeper)


def test_weights_are_spread_as_the_recipe_says(cases):
    for key, weight in cases[""][0].items():
        if weight.dim() == 2:
            is_scaled = key.endswith(("linear_proj.weight", "linear_fc2.weight"))
            std = 0.02 / (2 * TINY["num-layers"]) ** 0.5 if is_scaled else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.15), key
