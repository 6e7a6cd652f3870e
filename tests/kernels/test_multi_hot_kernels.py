"""The loss kernels against the definition in double precision, from the same stored logits."""

import pytest
import torch
from reference import multi_hot_loss_and_grad

from tst_megatron.model.bags import IGNORED
from tst_megatron.model.loss import multi_hot_cross_entropy, vocab_parallel_multi_hot_cross_entropy
from tst_megatron.model.loss_steps import Bags, loss_of, statistics, write_gradient

BAG_SIZES = (1, 2, 3, 4, 6, 8, 16)


def small_blocks(monkeypatch, *, block_bytes=128, enough_rows=1):
    """Blocks so small that a row of a few hundred columns takes several of them."""
    from tst_megatron.model.kernels import multi_hot as kernels

    monkeypatch.setattr(kernels, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(kernels, "ENOUGH_ROWS", enough_rows)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    small_blocks(monkeypatch)


def make_case(bag_size, *, rows=7, columns=131, seed=1, scale=3.0, targets_below=None):
    generator = torch.Generator().manual_seed(seed + bag_size)
    logits = torch.randn(rows, columns, generator=generator) * scale
    targets = torch.randint(0, targets_below or columns, (rows, bag_size), generator=generator)
    if rows > 3:
        targets[0] = targets[0, 0]  # one token in every slot
        targets[1, 0] = IGNORED
        targets[2] = IGNORED
        targets[3, -1] = 32  # the first column of a block
    upstream = torch.randn(rows, generator=generator)
    upstream[rows // 2 : rows // 2 + 1] = 0.0
    return logits, targets, upstream


def run(logits, targets, upstream, device, **options):
    """Loss and gradient by the kernels, on the CPU and in double precision."""
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = vocab_parallel_multi_hot_cross_entropy(
        leaf, targets.to(device), implementation="triton", **options
    )
    (loss * upstream.to(device)).sum().backward()
    return loss.detach().cpu().double(), leaf.grad.cpu()


def expected_of(logits, targets, upstream, **options):
    return multi_hot_loss_and_grad(
        logits.double(), targets, upstream_grad_N=upstream.double(), **options
    )


def assert_within_an_ulp(actual, expected):
    """bf16 numbers against double precision: no further off than its rounding and one more."""
    rounded = expected.to(actual.dtype).double()
    spacing = (
        torch.maximum(rounded.abs(), torch.tensor(torch.finfo(actual.dtype).tiny).double())
        .log2()
        .floor()
        .exp2()
        * torch.finfo(actual.dtype).eps
    )
    # The difference of two nearly equal numbers has the error of fp32 and not of its own size.
    assert ((actual.double() - rounded).abs() <= spacing + 2e-6).all()


@pytest.mark.parametrize("bag_size", BAG_SIZES)
def test_fp32_loss_and_gradient_equal_the_definition(device, bag_size):
    case = make_case(bag_size)
    expected, expected_grad = expected_of(*case)
    loss, gradient = run(*case, device)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bag_size", (1, 3, 16))
def test_bf16_gradient_is_the_exact_one_rounded_once(device, bag_size):
    logits, targets, upstream = make_case(bag_size)
    logits = logits.bfloat16()
    expected, expected_grad = expected_of(logits, targets, upstream)
    loss, gradient = run(logits, targets, upstream, device)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
    assert_within_an_ulp(gradient, expected_grad)


@pytest.mark.parametrize("bag_size", (1, 4))
def test_target_term_is_folded_in_before_rounding(device, bag_size):
    # A target that is nearly certain: 1 - p is lost if p is rounded to bf16 first.
    logits = torch.zeros(2, 131)
    targets = torch.tensor([[5] * bag_size, [77] * bag_size])
    logits.scatter_(1, targets[:, :1], 15.0)
    upstream = torch.ones(2)
    _, expected = expected_of(logits, targets, upstream)
    _, gradient = run(logits.bfloat16(), targets, upstream, device)
    torch.testing.assert_close(gradient.double(), expected, rtol=8e-3, atol=1e-9)


@pytest.mark.parametrize("weights", [[1.0, 0.5, 1 / 3, 0.25], [0.0, 1.0, 0.0, 2.0]])
def test_slot_weights_are_normalised_over_the_slots_that_count(device, weights):
    case = make_case(4)
    expected, expected_grad = expected_of(*case, slot_weights=weights)
    loss, gradient = run(*case, device, slot_weights=torch.tensor(weights))
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("bag_size", (1, 6))
def test_parts_of_a_row_merge_to_the_whole(device, bag_size, num_ranks):
    logits, targets, upstream = make_case(bag_size, columns=132, targets_below=70)
    targets[4] = torch.arange(bag_size)  # all on the first rank, whose border is 33 or 66
    targets[5, 0] = 132 // num_ranks
    expected, expected_grad = expected_of(logits, targets, upstream)
    bags = Bags(targets.to(device), None)
    parts = logits.to(device).chunk(num_ranks, dim=1)
    first_columns = [n * 132 // num_ranks for n in range(num_ranks)]
    read = [
        statistics(part, bags, first, triton=True)
        for part, first in zip(parts, first_columns, strict=True)
    ]
    loss, log_sum_exp = loss_of(torch.cat(read), bags, triton=True)
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=2e-6, atol=2e-6)
    gradients = []
    for part, first in zip(parts, first_columns, strict=True):
        gradient = torch.full_like(part, 7.0)
        write_gradient(gradient, part, log_sum_exp, bags, first, upstream.to(device), triton=True)
        gradients.append(gradient.cpu().double())
    torch.testing.assert_close(torch.cat(gradients, dim=1), expected_grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_are_read_by_several_programs_each(device, monkeypatch, rows):
    small_blocks(monkeypatch, enough_rows=1000)
    logits, targets, upstream = make_case(3, rows=rows, columns=301)
    bags = Bags(targets.to(device), None)
    read = statistics(logits.to(device), bags, 0, triton=True)
    assert read.shape == (5, rows, 4)
    loss, gradient = run(logits, targets, upstream, device)
    expected, expected_grad = expected_of(logits, targets, upstream)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("offset", [-120.0, -1e4, 1e4])
def test_logits_far_from_zero(device, offset):
    logits, targets, upstream = make_case(4)
    logits += offset
    expected, expected_grad = expected_of(logits, targets, upstream)
    loss, gradient = run(logits, targets, upstream, device)
    # The sum over the row is exact to fp32's spacing at this magnitude: 1e-3 at 1e4.
    tolerance = max(2e-6, abs(offset) * 1.2e-7)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_grad, rtol=tolerance, atol=tolerance)


def test_minus_infinity_in_blocks_and_at_a_target(device):
    logits, targets, upstream = make_case(3)
    logits[:, :64] = -torch.inf  # the first blocks of every row
    targets = targets.where(targets == IGNORED, targets.clamp_min(64))
    targets[5, 0] = 3
    loss, gradient = run(logits, targets, upstream, device)
    assert loss[5] == torch.inf
    # The gradient of a target without probability is its weight alone.
    assert gradient[5, 3] == pytest.approx(-float(upstream[5]) / 3)
    others = [0, 1, 2, 3, 4, 6]
    expected, expected_grad = expected_of(logits[others], targets[others], upstream[others])
    torch.testing.assert_close(loss[others], expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient[others].double(), expected_grad, rtol=2e-6, atol=2e-6)


def test_target_outside_the_vocabulary_gives_nan_and_not_a_number(device):
    logits, targets, _ = make_case(3)
    targets[4, 1], targets[5, 0] = 131, -5
    for implementation in ("torch", "triton"):
        loss = vocab_parallel_multi_hot_cross_entropy(
            logits.to(device), targets.to(device), implementation=implementation
        )
        assert loss.isnan().tolist() == [False] * 4 + [True] * 2 + [False]


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_ignored_position_has_no_gradient_whatever_comes_from_above(device, implementation):
    logits, targets, upstream = make_case(3)
    upstream[2] = torch.nan  # its slots are all ignored
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = vocab_parallel_multi_hot_cross_entropy(
        leaf, targets.to(device), implementation=implementation
    )
    loss.backward(upstream.to(device))
    assert not leaf.grad[2].any() and leaf.grad.isfinite().all()


def test_gradients_of_a_row_sum_to_zero(device):
    *_, gradient = (*make_case(6), *run(*make_case(6), device))
    assert gradient.double().sum(dim=1).abs().max() < 1e-6


def test_equally_weighted_labels_may_change_places(device):
    logits, targets, upstream = make_case(8)
    _, gradient = run(logits, targets, upstream, device)
    _, permuted = run(logits, targets.flip(1), upstream, device)
    assert torch.equal(gradient, permuted)


@pytest.mark.parametrize("copies", [2, 4, 16])
def test_copies_of_one_label_are_that_label(device, copies):
    logits, targets, upstream = make_case(1)
    loss, gradient = run(logits, targets, upstream, device)
    copied_loss, copied = run(logits, targets.expand(-1, copies), upstream, device)
    torch.testing.assert_close(copied_loss, loss, rtol=2e-7, atol=0)
    torch.testing.assert_close(copied, gradient, rtol=2e-7, atol=1e-7)


def test_squared_loss_has_the_gradient_of_a_varying_upstream(device):
    logits, targets, _ = make_case(4)
    leaf = logits.to(device, copy=True).requires_grad_()
    loss = vocab_parallel_multi_hot_cross_entropy(leaf, targets.to(device), implementation="triton")
    (loss**2).sum().backward()
    exact = logits.double().requires_grad_()
    (multi_hot_cross_entropy(exact, targets) ** 2).sum().backward()
    torch.testing.assert_close(leaf.grad.cpu().double(), exact.grad, rtol=4e-6, atol=4e-6)


def test_repeats_are_the_same_bits(device):
    case = make_case(6, rows=5, columns=300)
    first = run(*case, device)
    for _ in range(3 if device.type == "cpu" else 20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(*case, device), strict=True))


def test_transposed_logits(device):
    logits, targets, upstream = make_case(3, rows=6)
    expected = run(logits, targets, upstream, device)
    view = logits.view(2, 3, 131).transpose(0, 1).contiguous().transpose(0, 1)
    leaf = view.to(device, copy=True).requires_grad_()
    assert not leaf.is_contiguous()
    loss = vocab_parallel_multi_hot_cross_entropy(
        leaf, targets.view(2, 3, 3).to(device), implementation="triton"
    )
    (loss.view(-1) * upstream.to(device)).sum().backward()
    assert torch.equal(loss.detach().cpu().double().view(-1), expected[0])
    assert torch.equal(leaf.grad.cpu().reshape(6, 131), expected[1])


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overwriting_gives_the_same_bits_in_the_logits_memory(device, implementation, dtype):
    logits, targets, upstream = (value.to(device) for value in make_case(6))
    gradients = []
    for overwrite in (False, True):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        stored = leaf * 1
        memory = stored.data_ptr()
        seen = []
        stored.register_hook(seen.append)
        loss = vocab_parallel_multi_hot_cross_entropy(
            stored, targets, implementation=implementation, may_overwrite_logits=overwrite
        )
        total = (loss * upstream).sum()
        total.backward(retain_graph=True)
        gradients.append(leaf.grad.clone())
        assert (seen[0].data_ptr() == memory) == overwrite
        if overwrite:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                total.backward()
        else:
            total.backward()
    assert torch.equal(*gradients)


def test_rows_further_apart_than_32_bits_reach(device):
    """Rows so far apart that 32 bits hold the distance of two, and not that of three."""
    stride = 2**30 + 5
    memory = torch.empty(2 * stride + 300, dtype=torch.bfloat16, device=device)
    # Only their own columns are ever touched.
    logits = memory.as_strided((3, 300), (stride, 1))
    case = make_case(4, rows=3, columns=300)
    logits.copy_(case[0].bfloat16())
    bags = Bags(case[1].to(device), None)
    near = case[0].bfloat16().to(device)
    results = []
    for rows in (near, logits):
        read = statistics(rows, bags, 0, triton=True)
        loss, log_sum_exp = loss_of(read, bags, triton=True)
        write_gradient(rows, rows, log_sum_exp, bags, 0, case[2].to(device), triton=True)
        results.append((loss, rows.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_recomputed_activations_give_the_same_bits(device, implementation):
    logits, targets, upstream = (value.to(device) for value in make_case(4))

    def loss_of_half(logits):
        return vocab_parallel_multi_hot_cross_entropy(
            logits * 0.5, targets, implementation=implementation, may_overwrite_logits=True
        )

    gradients = []
    for recompute in (False, True):
        leaf = logits.clone().requires_grad_()
        if recompute:
            loss = torch.utils.checkpoint.checkpoint(loss_of_half, leaf, use_reentrant=False)
        else:
            loss = loss_of_half(leaf)
        (loss * upstream).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_compiled_whole_gives_the_same_bits(device, implementation):
    logits, targets, upstream = (value.to(device) for value in make_case(4))

    def loss_of_double(logits):
        loss = vocab_parallel_multi_hot_cross_entropy(
            logits * 2, targets, implementation=implementation, may_overwrite_logits=True
        )
        return (loss * upstream).sum()

    compiled = torch.compile(loss_of_double, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss_of_double, compiled):
        leaf = logits.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
