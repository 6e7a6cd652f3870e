"""The ways that are compared compute the same thing, else their times say nothing."""

import pytest
import torch

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.bench import embedding, linear_loss, loss
from tst_megatron.bench.comparing import Settings
from tst_megatron.megatron.distributed_checkpoint.model import start_alone

CPU = torch.device("cpu")
SETTINGS = Settings(device=CPU, rounds=2)


@pytest.fixture(scope="module", autouse=True)
def process_group():
    was_there = torch.distributed.is_initialized()
    start_alone()
    yield
    if not was_there:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def measured(result):
    """Timings of ways that could run here; what is not installed or cannot compile says so."""
    found = []
    for case in result.cases:
        for timing in case.timings:
            if timing.failure is None:
                assert timing.ratio.median > 0 and len(timing.seconds) == 2
                found.append((case.title, timing))
            else:
                # The CPU host takes torch.compile away, and would time plain torch by its name.
                is_compiled = timing.name.startswith("compiled")
                wanted = "the CPU host compiles nothing" if is_compiled else "not installed"
                assert timing.failure == wanted, timing
    return found


def test_every_way_gives_the_gradient_of_the_loss(monkeypatch):
    monkeypatch.setattr(loss, "BAG_SIZES", (1, 3))
    result = loss.compare(SETTINGS, sizes=[loss.Size(20, 64, torch.float32)])
    ways = measured(result)
    names = {timing.name for _, timing in ways}
    assert {loss.OURS, "one pass", "co-author's: softmax kept in fp32"} <= names
    assert {"3 x Megatron, native fused", "F.cross_entropy, dense targets"} <= names
    for title, timing in ways:
        if timing.name.startswith("copy"):
            continue
        # Megatron's gives its gradient in bf16, whatever it is given.
        bound = 1e-2 if "Megatron" in timing.name else 1e-5
        assert timing.error < bound, (title, timing.name)
    assert all(case.notes["faster"] for case in result.cases)


def test_every_way_gives_the_means(monkeypatch):
    monkeypatch.setattr(embedding, "BAG_SIZES", (3,))
    size = embedding.Size(40, 8, 2, 5, torch.float32)
    ways = measured(embedding.compare(SETTINGS, sizes=[size]))
    forward = [timing for title, timing in ways if title.endswith(": forward")]
    both = [timing for title, timing in ways if title.endswith("and backward")]
    assert len(forward) == len(both) >= 4
    assert all(timing.error < 1e-6 for timing in forward)


def test_every_way_adds_the_same_gradient_to_the_buffer():
    size = embedding.Size(40, 8, 2, 5, torch.float32)
    totals = {}
    for name, way in (("gather", embedding._gather), ("bag", embedding._embedding_bag)):
        inputs = embedding.Inputs(size, 3, device=CPU, seed=1)
        inputs.both(way, adds_itself=False)
        totals[name] = inputs.main_grad
    inputs = embedding.Inputs(size, 3, device=CPU, seed=1)
    inputs.both(embedding._megatron(inputs), adds_itself=False)
    torch.testing.assert_close(totals["gather"], totals["bag"])
    torch.testing.assert_close(totals["gather"], inputs.main_grad)


def test_output_layer_and_loss_have_the_same_gradients(monkeypatch):
    monkeypatch.setattr("tst_megatron.model.linear_loss.CHUNK_MULTIPLE", 16)
    monkeypatch.setattr(linear_loss, "ROWS_OF_A_CHUNK", 7)
    size = linear_loss.Size(20, 64, 8, torch.float32, 20 * 16 * 4)
    assert len(measured(linear_loss.compare(SETTINGS, sizes=[size]))) == 2 * 6
    inputs = linear_loss.Inputs(size, 3, device=CPU, seed=1)
    gradients = []
    for contender in linear_loss.ways(inputs, size):
        contender.before()
        contender.run()
        if inputs.weight.grad is not None:
            gradients.append((inputs.hidden.grad, inputs.weight.grad))
    assert len(gradients) == 4
    for hidden, weight in gradients[1:]:
        torch.testing.assert_close(hidden, gradients[0][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weight, gradients[0][1], rtol=1e-4, atol=1e-6)
