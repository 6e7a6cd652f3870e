"""What the ablation switches make of one micro-batch: its ids, its loss and its gradients.

One process, one model, called directly; the auxiliary losses of the router are off, so that
gradients of slots add up.
"""

import pytest
import torch
from processes import run_ranks
from tiny import TINY

LENGTH, BAG, SEQUENCES, END = 8, 4, 3, 2

SIDES = {
    "bags": ("bags", "bags"),
    "inputs tokens": ("tokens", "bags"),
    "targets tokens": ("bags", "tokens"),
}
WEIGHTS = ("uniform", "1/i", "exp(-i)")


def raw_tokens():
    """More raw tokens than any phase needs; each token is there once."""
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(TINY["vocab-size"] - 3, generator=generator) + 3
    return order[: SEQUENCES * BAG * (LENGTH + 1)].view(SEQUENCES, -1)


def phase(inputs, targets):
    from tst_megatron.schedule import Phase

    return Phase(bag_size=BAG, first_step=0, num_steps=1, inputs=inputs, targets=targets)


def run_all_switches(tokenizer):
    import one_step

    recipe = {
        **TINY,
        "seq-length": LENGTH,
        "max-position-embeddings": LENGTH,
        "micro-batch-size": SEQUENCES,
        "global-batch-size": SEQUENCES,
        "moe-aux-loss-coeff": 0.0,
        "tokenizer-type": "SentencePieceTokenizer",
        "tokenizer-model": tokenizer,
        "use-distributed-optimizer": False,
        "rerun-mode": "disabled",
        "dataloader-type": "single",
    }
    (model,) = one_step.build(one_step.start(recipe))
    from tst_megatron.schedule import Schedule
    from tst_megatron.training.step import make_batch

    inner = model.module
    while hasattr(inner, "module"):
        inner = inner.module
    results, hidden = {}, []
    inner.output_layer.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    for name, sides in SIDES.items():
        switched = phase(*sides)
        sizes = Schedule(
            phases=(switched,), num_latent_positions=LENGTH, global_batch_size=SEQUENCES
        )
        tokens = raw_tokens()[:, : sizes.raw_tokens_per_sample(switched)]
        batch = make_batch(tokens, switched)
        hidden.clear()
        run = loss_and_gradients(model, batch, batch.targets)
        (seen,) = hidden
        weight = inner.output_layer.weight.detach().clone()
        results[name] = {"batch": batch, "run": run, "hidden": seen.detach(), "weight": weight}
    batch = results["bags"]["batch"]
    for kind in WEIGHTS:
        inner.slot_weights = kind
        results[kind] = loss_and_gradients(model, batch, batch.targets)
    inner.slot_weights = "exp(-i)"
    inner.linear_cross_entropy = True
    hidden.clear()
    results["linear"] = loss_and_gradients(model, batch, batch.targets)
    next_tokens = loss_and_gradients(model, batch, batch.targets[..., 0])
    results["ran the output layer"] = len(hidden)
    inner.linear_cross_entropy = False
    results["next token"] = next_tokens, loss_and_gradients(model, batch, batch.targets[..., 0])
    inner.slot_weights = "1/i"
    for slot in range(BAG):
        only = torch.full_like(batch.targets, -100)
        only[..., slot] = batch.targets[..., slot]
        results[slot] = loss_and_gradients(model, batch, only)
    return results


def loss_and_gradients(model, batch, targets):
    model.zero_grad_buffer()
    losses = model(batch.tokens, batch.position_ids, None, labels=targets)
    losses.sum().backward()
    names = ((name.removeprefix("module."), p) for name, p in model.named_parameters())
    return losses.detach(), {name: p.main_grad.clone() for name, p in names}


@pytest.fixture(scope="module")
def switches(text):
    (result,) = run_ranks(run_all_switches, 1, str(text / "tokenizer.model"), preload="preloaded")
    return result


def test_linear_loss_takes_the_place_of_output_layer_and_loss_for_bags_alone(switches):
    losses, gradients = switches["linear"]
    expected_losses, expected_gradients = switches["exp(-i)"]
    torch.testing.assert_close(losses, expected_losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], msg=name)
    assert switches["ran the output layer"] == 1, "by the labels of one token"
    (losses, gradients), (expected_losses, expected_gradients) = switches["next token"]
    assert torch.equal(losses, expected_losses)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


def test_recipe_reaches_the_model():
    from tst_megatron.megatron.cpu import host

    host.install()
    from tst_megatron.model.gpt import TSTGPTModelConfig
    from tst_megatron.recipe.tst_config import TSTConfig

    fake = TSTGPTModelConfig.__new__(TSTGPTModelConfig)
    tst = TSTConfig(slot_weights="1/i", linear_cross_entropy=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tst_megatron.model.gpt.gpt_config_from_args", lambda *_, **__: fake)
        config = TSTGPTModelConfig.from_arguments(None, tst)
    assert (config.slot_weights, config.linear_cross_entropy) == ("1/i", True)


def test_ids_are_those_that_each_switch_says(switches):
    tokens = raw_tokens()
    for name, (inputs, targets) in SIDES.items():
        batch = switches[name]["batch"]
        read = BAG if inputs == "bags" else 1
        predicted = BAG if targets == "bags" else 1
        assert batch.tokens.shape == ((SEQUENCES, LENGTH, BAG) if read > 1 else (SEQUENCES, LENGTH))
        assert batch.targets.shape[2:] == ((BAG,) if predicted > 1 else ())
        for position in range(LENGTH):
            first, after = position * read, (position + 1) * read
            ids = batch.tokens[:, position].reshape(SEQUENCES, read)
            assert torch.equal(ids, tokens[:, first:after])
            ids = batch.targets[:, position].reshape(SEQUENCES, predicted)
            assert torch.equal(ids, tokens[:, after : after + predicted])
        assert batch.tokens.is_contiguous() and batch.targets.is_contiguous()


@pytest.mark.parametrize("name", SIDES)
def test_embedding_gradient_reaches_the_tokens_that_are_read_and_no_other(switches, name):
    batch, (_, gradients) = switches[name]["batch"], switches[name]["run"]
    rows = gradients["embedding.word_embeddings.weight"].abs().sum(dim=1).nonzero().flatten()
    assert rows.tolist() == sorted(batch.tokens.flatten().tolist())


@pytest.mark.parametrize("name", SIDES)
def test_output_layer_is_pulled_to_the_targets_and_pushed_from_the_rest(switches, name):
    """Its gradient is (softmax less what is wanted) x hidden state, summed over positions."""
    batch, (losses, gradients) = switches[name]["batch"], switches[name]["run"]
    hidden_LBH, weight_VH = switches[name]["hidden"], switches[name]["weight"]
    targets_BLJ = batch.targets.view(SEQUENCES, LENGTH, -1)
    wanted = torch.zeros(SEQUENCES, LENGTH, len(weight_VH))
    wanted.scatter_(2, targets_BLJ, 1.0 / targets_BLJ.shape[-1])
    hidden = hidden_LBH.transpose(0, 1)
    log_softmax = (hidden @ weight_VH.T).log_softmax(-1)
    expected = torch.einsum("blv,blh->vh", log_softmax.exp() - wanted, hidden)
    assert_close({"weight": gradients["output_layer.weight"]}, {"weight": expected})
    torch.testing.assert_close(losses, -(log_softmax * wanted).sum(-1))
    # Untrained, in a vocabulary of 512: near ln(512) whatever the switch.
    assert losses.mean() == pytest.approx(6.238, rel=0.02)
    assert batch.loss_mask.eq(1).all()


def test_targets_tokens_is_the_first_slot_of_the_whole_bag(switches):
    losses, gradients = switches["targets tokens"]["run"]
    first_losses, first_gradients = switches[0]
    torch.testing.assert_close(losses, first_losses, atol=1e-6, rtol=1e-6)
    assert_close(gradients, first_gradients)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_gradient_is_the_weighted_sum_of_the_gradients_of_single_slots(switches, kind):
    laws = {
        "uniform": [1, 1, 1, 1],
        "1/i": [1, 1 / 2, 1 / 3, 1 / 4],
        "exp(-i)": [2.718281828459045**-i for i in range(1, 5)],
    }
    weights = [weight / sum(laws[kind]) for weight in laws[kind]]
    losses, gradients = switches[kind]
    expected = sum(w * switches[slot][0] for slot, w in enumerate(weights))
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    summed = {
        name: sum(w * switches[slot][1][name] for slot, w in enumerate(weights))
        for name in gradients
    }
    assert_close(gradients, summed)


def test_weights_differ_in_their_gradients(switches):
    for one, two in (("uniform", "1/i"), ("1/i", "exp(-i)")):
        name = "output_layer.weight"
        assert not torch.allclose(switches[one][1][name], switches[two][1][name], rtol=1e-2)


def assert_close(one, two):
    assert one and one.keys() == two.keys()
    for name in one:
        scale = max(float(two[name].norm()), 1e-8)
        assert float((one[name] - two[name]).norm()) <= 1e-5 * scale, name
