import math

import pytest
import torch
from reference import multi_hot_loss_and_grad

from tst_megatron.model.loss import (
    multi_hot_cross_entropy,
    slot_weights,
    vocab_parallel_multi_hot_cross_entropy,
)

BOTH = pytest.mark.parametrize(
    "loss_function", [multi_hot_cross_entropy, vocab_parallel_multi_hot_cross_entropy]
)


def make_case(bag_size: int, *, vocabulary: int = 23, positions: int = 7):
    generator = torch.Generator().manual_seed(bag_size)
    logits = torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, vocabulary - 4, (positions, bag_size), generator=generator)
    targets[0] = targets[0, 0]  # one token in every slot
    targets[1, 0] = -100  # one slot ignored
    targets[2] = -100  # all slots ignored
    weights = torch.rand(positions, generator=generator, dtype=torch.float64) + 0.5
    return logits, targets, weights


@BOTH
@pytest.mark.parametrize("bag_size", [1, 2, 3, 6, 16])
def test_loss_and_gradient_equal_the_definition(loss_function, bag_size):
    logits, targets, grad = make_case(bag_size)
    expected, expected_grad = multi_hot_loss_and_grad(logits, targets, upstream_grad_N=grad)
    logits.requires_grad_()
    loss = loss_function(logits, targets)
    (loss * grad).sum().backward()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(logits.grad, expected_grad, atol=1e-12, rtol=1e-12)


@BOTH
def test_slot_weights_are_normalised_over_the_slots_that_count(loss_function):
    logits, targets, grad = make_case(4)
    slot_weights = [1.0, 0.5, 1 / 3, 0.25]
    expected, expected_grad = multi_hot_loss_and_grad(
        logits, targets, upstream_grad_N=grad, slot_weights=slot_weights
    )
    logits.requires_grad_()
    loss = loss_function(logits, targets, slot_weights=torch.tensor(slot_weights).double())
    (loss * grad).sum().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits.grad, expected_grad)


@BOTH
def test_fully_ignored_position_has_no_loss_and_no_gradient(loss_function):
    logits = torch.randn(2, 11, requires_grad=True)
    loss = loss_function(logits, torch.full((2, 4), -100))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert logits.grad.abs().max() == 0.0


@BOTH
@pytest.mark.parametrize("bag_size", [1, 4, 16])
def test_untrained_loss_is_near_log_v_and_not_log_v_over_k(loss_function, bag_size):
    logits = torch.randn(512, 4096) * 0.02
    targets = torch.randint(0, 4096, (512, bag_size))
    mean = loss_function(logits, targets).mean().item()
    assert mean == pytest.approx(math.log(4096), rel=0.02)


@BOTH
def test_bf16_logits_are_computed_in_fp32_and_get_bf16_gradients(loss_function):
    logits, targets, grad = make_case(6)
    rounded = logits.bfloat16()
    expected, expected_grad = multi_hot_loss_and_grad(
        rounded.double(), targets, upstream_grad_N=grad
    )
    rounded.requires_grad_()
    loss = loss_function(rounded, targets)
    assert loss.dtype == torch.float32
    (loss * grad.float()).sum().backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rounded.grad.double(), expected_grad, atol=4e-3, rtol=1e-2)


def test_input_logits_are_left_alone():
    logits, targets, _ = make_case(3)
    before = logits.clone()
    vocab_parallel_multi_hot_cross_entropy(logits, targets)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bag_size", [1, 2, 4, 16])
def test_slot_weights_are_the_paper_s_and_sum_to_one(bag_size):
    laws = {"1/i": lambda i: 1 / i, "exp(-i)": lambda i: math.exp(-i)}
    for kind, law in laws.items():
        raw = [law(i) for i in range(1, bag_size + 1)]
        expected = torch.tensor([weight / sum(raw) for weight in raw])
        torch.testing.assert_close(slot_weights(kind, bag_size), expected)
    assert slot_weights("uniform", bag_size) is None


@pytest.mark.parametrize("kind", ["1/i", "exp(-i)"])
def test_weighted_gradient_is_softmax_less_the_weights_of_the_targets(kind):
    logits = torch.randn(3, 23, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[4, 7, 7, 1], [0, 1, 2, 3], [5, -100, -100, 6]])
    weights = slot_weights(kind, 4).double()
    vocab_parallel_multi_hot_cross_entropy(logits, targets, slot_weights=weights).sum().backward()
    expected = logits.detach().softmax(-1)
    for row, bag in enumerate(targets.tolist()):
        counted = sum(weights[slot] for slot, token in enumerate(bag) if token >= 0)
        for slot, token in enumerate(bag):
            if token >= 0:
                expected[row, token] -= weights[slot] / counted
    torch.testing.assert_close(logits.grad, expected)


def exponentials(logits):
    return (logits - logits.amax(-1, keepdim=True)).exp()


def overwritten(logits, **changes):
    """Return what the memory of logits holds after the forward pass that may overwrite them."""
    stored = logits.clone().requires_grad_() * 1
    targets = torch.randint(0, 11, (*logits.shape[:-1], 4))
    loss = vocab_parallel_multi_hot_cross_entropy(
        stored, targets, **{"may_overwrite_logits": True, "implementation": "torch", **changes}
    )
    return stored.detach(), loss


def test_forward_pass_of_training_leaves_exponentials_in_the_logits_memory():
    logits = torch.randn(5, 7, 11)
    stored, _ = overwritten(logits)
    assert torch.equal(stored, exponentials(logits))


def test_logits_are_left_alone_where_nobody_allowed_it_or_no_backward_pass_follows():
    logits = torch.randn(5, 7, 11)
    assert torch.equal(overwritten(logits, may_overwrite_logits=False)[0], logits)
    with torch.no_grad():
        assert torch.equal(overwritten(logits)[0], logits)


def test_bf16_logits_keep_their_values_until_the_backward_pass():
    """Exponentials in bf16 would be rounded twice."""
    logits = torch.randn(5, 7, 11).bfloat16()
    assert torch.equal(overwritten(logits)[0], logits)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_overwriting_has_the_bits_of_recomputing(scale):
    logits = torch.randn(6, 300) * scale
    logits[2, :200] = -torch.inf
    targets = torch.tensor([[250, 299], [3, 3], [250, -100], [-100, -100], [0, 1], [7, 299]])
    upstream = torch.rand(6)
    gradients = []
    for overwrites in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = vocab_parallel_multi_hot_cross_entropy(
            leaf * 1, targets, implementation="torch", may_overwrite_logits=overwrites
        )
        (loss * upstream).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients) and gradients[0].isfinite().all()
    assert not gradients[0][3].any()


def test_logits_that_require_a_gradient_are_left_alone_without_a_backward_pass_too():
    leaf = torch.randn(5, 11, requires_grad=True)
    before = leaf.detach().clone()
    with torch.no_grad():
        vocab_parallel_multi_hot_cross_entropy(
            leaf, torch.zeros(5, 2, dtype=torch.long), may_overwrite_logits=True
        )
    assert torch.equal(leaf, before)


@BOTH
def test_slots_of_weight_0_count_for_nothing(loss_function):
    logits = torch.randn(2, 11, requires_grad=True)
    targets = torch.tensor([[3, -100], [3, 4]])
    loss = loss_function(logits, targets, slot_weights=torch.tensor([0.0, 1.0]))
    loss.sum().backward()
    assert loss[0] == 0 and not logits.grad[0].any()
    assert loss[1] > 0 and logits.grad[1].any()
