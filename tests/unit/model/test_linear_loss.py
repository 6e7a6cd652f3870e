"""The linear loss against the definition, in double precision, whole and in chunks."""

import pytest
import torch
from reference import multi_hot_loss_and_grad

from tst_megatron.model import linear_loss
from tst_megatron.model.linear_loss import linear_multi_hot_cross_entropy
from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy

VOCABULARY, HIDDEN = 23, 5
MODES = pytest.mark.parametrize("mode", ["save", "recompute"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 8 columns, of which the last is ragged."""
    monkeypatch.setattr(linear_loss, "CHUNK_MULTIPLE", 8)


def make_case(bag_size=4, *, dtype=torch.float64, positions=(3, 2), vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(bag_size)
    hidden = torch.randn(*positions, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (*positions, bag_size), generator=generator)
    targets[0, 0] = targets[0, 0, 0]
    targets[1, 0, 0] = -100
    targets[2, 1] = -100
    upstream = torch.randn(*positions, generator=generator, dtype=torch.float64)
    leaves = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    return *leaves, targets, upstream


@MODES
@pytest.mark.parametrize("bag_size", [1, 2, 6, 16])
def test_loss_and_gradients_equal_the_definition(mode, bag_size):
    hidden, weight, targets, upstream = make_case(bag_size)
    loss = linear_multi_hot_cross_entropy(hidden, weight, targets, mode=mode, workspace_bytes=1)
    (loss * upstream).sum().backward()
    flat = hidden.detach().view(-1, HIDDEN)
    expected, grad_logits = multi_hot_loss_and_grad(
        flat @ weight.detach().t(),
        targets.view(-1, bag_size),
        upstream_grad_N=upstream.view(-1),
    )
    torch.testing.assert_close(loss.view(-1), expected, atol=1e-11, rtol=1e-11)
    expected_hidden = (grad_logits @ weight.detach()).view_as(hidden)
    torch.testing.assert_close(hidden.grad, expected_hidden, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(weight.grad, grad_logits.t() @ flat, atol=1e-11, rtol=1e-11)


@MODES
def test_slot_weights_are_those_of_the_other_loss(mode):
    hidden, weight, targets, upstream = make_case()
    options = {"slot_weights": torch.tensor([1.0, 0.5, 0.0, 0.25])}
    results = []
    for loss in (
        vocab_parallel_multi_hot_cross_entropy(hidden @ weight.t(), targets, **options),
        linear_multi_hot_cross_entropy(
            hidden, weight, targets, mode=mode, workspace_bytes=1, **options
        ),
    ):
        (loss * upstream).sum().backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
        hidden.grad = weight.grad = None
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-11, rtol=1e-11)


def test_recomputing_holds_no_more_logits_than_the_workspace():
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes())
            return out

    hidden, weight, targets, _ = make_case(
        2, dtype=torch.float32, positions=(16, 16), vocabulary=96
    )
    workspace = 256 * 24 * 4
    with Sizes():
        linear_multi_hot_cross_entropy(
            hidden, weight, targets, mode="recompute", workspace_bytes=workspace
        ).sum().backward()
    # Of all logits, which are 4 times as many, there is never more than a chunk.
    assert max(sizes) == workspace
    sizes.clear()
    with Sizes():
        linear_multi_hot_cross_entropy(
            hidden, weight, targets, workspace_bytes=96 * 256 * 4
        ).sum().backward()
    assert max(sizes) == 4 * workspace, "what fits is saved"


@MODES
def test_bf16_error_is_at_most_twice_that_of_the_plain_way(mode):
    hidden, weight, targets, upstream = make_case(
        4, dtype=torch.bfloat16, positions=(40, 10), vocabulary=64
    )
    exact = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    plain = [leaf.detach().clone().requires_grad_() for leaf in (hidden, weight)]
    for pair in (exact, plain):
        loss = vocab_parallel_multi_hot_cross_entropy(pair[0] @ pair[1].t(), targets)
        (loss * upstream.to(loss)).sum().backward()
    loss = linear_multi_hot_cross_entropy(hidden, weight, targets, mode=mode, workspace_bytes=1)
    (loss * upstream.float()).sum().backward()
    for ours, theirs, true in zip((hidden, weight), plain, exact, strict=True):
        allowed = 2 * (theirs.grad.double() - true.grad).norm()
        assert 0 < (ours.grad.double() - true.grad).norm() <= allowed


@MODES
@pytest.mark.parametrize("is_tied", [False, True])
def test_weight_gradient_goes_into_main_grad_once_per_micro_batch(mode, is_tied):
    hidden, weight, targets, upstream = make_case(dtype=torch.bfloat16)
    plain = weight.detach().clone().requires_grad_()
    linear_multi_hot_cross_entropy(
        hidden, plain, targets, mode=mode, workspace_bytes=1
    ).sum().backward()
    weight.main_grad = torch.full(weight.shape, 0.5)
    weight.grad_added_to_main_grad = False
    weight.zero_out_wgrad = is_tied
    for _ in range(2):
        loss = linear_multi_hot_cross_entropy(
            *(hidden, weight, targets),
            mode=mode,
            workspace_bytes=1,
            accumulate_into_main_grad=True,
        )
        assert not weight.grad_added_to_main_grad, "a forward pass may be evaluation"
        loss.sum().backward()
        assert weight.grad_added_to_main_grad
        weight.grad_added_to_main_grad = False
    expected = 0.5 + 2 * plain.grad.float()
    torch.testing.assert_close(weight.main_grad, expected, rtol=2e-2, atol=2e-2)
    # What the hook is given for a table with two uses is added, so it must be zero.
    assert weight.grad is not None and (not is_tied or not weight.grad.any())


def test_gradient_is_ordinary_where_there_is_no_buffer_to_trust():
    hidden, weight, targets, _ = make_case(dtype=torch.float32)
    weight.main_grad = torch.zeros_like(weight)
    weight.grad_added_to_main_grad = False
    weight.__fsdp_param__ = True
    linear_multi_hot_cross_entropy(
        hidden, weight, targets, accumulate_into_main_grad=True
    ).sum().backward()
    assert not weight.main_grad.any() and weight.grad.any()
    assert not weight.grad_added_to_main_grad


@MODES
def test_only_the_gradients_that_are_wanted_are_computed(mode):
    hidden, weight, targets, _ = make_case()
    for frozen, trained in ((hidden, weight), (weight, hidden)):
        frozen.requires_grad_(False)
        hidden.grad = weight.grad = None
        linear_multi_hot_cross_entropy(
            hidden, weight, targets, mode=mode, workspace_bytes=1
        ).sum().backward()
        assert frozen.grad is None and trained.grad.any()
        frozen.requires_grad_()


def test_input_that_does_not_fit_is_refused():
    hidden, weight, targets, _ = make_case()
    with pytest.raises(ValueError, match="mode: fused is none of auto, save, recompute"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, mode="fused")
    with pytest.raises(ValueError, match="do not fit the weight"):
        linear_multi_hot_cross_entropy(hidden.float(), weight, targets)
    with pytest.raises(ValueError, match=r"hidden states \[3, 2, 5\] and targets \[2, 4\] differ"):
        linear_multi_hot_cross_entropy(hidden, weight, targets[0])
    with pytest.raises(ValueError, match=r"slot weights \[3\] are not one for each of the 4"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, slot_weights=torch.ones(3))
    with pytest.raises(ValueError, match="triton computes in fp32, not torch.float64. Use torch"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, implementation="triton")
    with pytest.raises(ValueError, match="implementation: cuda is none of auto, torch, triton"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, implementation="cuda")
