"""The linear loss by the kernels, against the torch twin."""

import pytest
import torch

from tst_megatron.model import linear_loss
from tst_megatron.model.linear_loss import linear_multi_hot_cross_entropy

VOCABULARY, HIDDEN, ROWS, BAG_SIZE = 300, 16, 9, 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["save", "recompute"])
def test_loss_and_gradients_are_those_of_the_twin(device, monkeypatch, mode, dtype):
    monkeypatch.setattr(linear_loss, "CHUNK_MULTIPLE", 128)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(device, dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (ROWS, BAG_SIZE), generator=generator).to(device)
    targets[0], targets[1, 0] = -100, -100
    upstream = torch.randn(ROWS, generator=generator).to(device)
    results = []
    for implementation in ("torch", "triton"):
        loss = linear_multi_hot_cross_entropy(
            *(hidden, weight, targets),
            mode=mode,
            workspace_bytes=1,
            implementation=implementation,
        )
        (loss * upstream).sum().backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
        hidden.grad = weight.grad = None
    # bf16: the product of one gradient that is rounded the other way.
    tolerance = 4e-6 if dtype == torch.float32 else 2e-2
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", ["save", "recompute"])
def test_main_grad_is_fp32_beside_bf16_factors(device, mode):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(device, torch.bfloat16)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(device, torch.bfloat16)
    targets = torch.randint(0, VOCABULARY, (ROWS, BAG_SIZE), generator=generator).to(device)
    grads = []
    for into_main_grad in (False, True):
        leaf = weight.clone().requires_grad_()
        leaf.main_grad = torch.full(weight.shape, 0.5, device=device)
        leaf.grad_added_to_main_grad = False
        linear_multi_hot_cross_entropy(
            *(hidden, leaf, targets),
            mode=mode,
            workspace_bytes=1,
            accumulate_into_main_grad=into_main_grad,
            implementation="triton",
        ).sum().backward()
        grads.append(leaf.main_grad - 0.5 if into_main_grad else leaf.grad.float())
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-2)
