"""Resets of optimizers that the CPU host does not have: those that count steps by group."""

from types import SimpleNamespace

import pytest
import torch

from tst_megatron.megatron import optimizer


def fused(step):
    """As Apex and Transformer Engine keep it: the count of steps beside the parameters."""
    main = torch.nn.Parameter(torch.ones(4))
    state = {main: {"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}}
    groups = [{"params": [main], "lr": 0.5, "step": step}]
    inner = SimpleNamespace(state=state, param_groups=groups)
    return SimpleNamespace(optimizer=inner, param_groups=groups), main


@pytest.mark.parametrize("step", [7, torch.tensor(7, dtype=torch.int32)])
def test_count_of_a_group_starts_anew_and_the_rate_goes_on(step):
    parts = [fused(step), fused(step)]
    chained = SimpleNamespace(chained_optimizers=[part for part, _ in parts])
    optimizer.start_anew(chained)
    for part, main in parts:
        (group,) = part.param_groups
        assert group["step"] == 0 and type(group["step"]) is type(step)
        assert group["lr"] == 0.5
        assert not any(moment.any() for moment in part.optimizer.state[main].values())
        assert main.eq(1).all()


def test_value_reaches_the_main_copy_of_its_own_optimizer_alone():
    (one, main), (other, untouched) = fused(7), fused(7)
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    parameter.main_param = main
    value = torch.full((4,), 0.1)
    optimizer.assign(SimpleNamespace(chained_optimizers=[one, other]), parameter, value)
    assert torch.equal(main, value)
    assert torch.equal(parameter, value.bfloat16())
    assert not one.optimizer.state[main]["exp_avg"].any()
    assert other.optimizer.state[untouched]["exp_avg"].all() and untouched.eq(1).all()
    assert one.param_groups[0]["step"] == 7
