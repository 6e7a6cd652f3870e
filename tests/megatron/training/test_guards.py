"""What happens to a result that cannot be right: a NaN, and a loss that jumps."""

import platform

import pytest
import tiny
import torch

from tst_megatron.megatron import names
from tst_megatron.training import step as training_step

SWITCH, STEPS = 40, 90
SPIKES, NAN = (36, 76), 82


@pytest.fixture(scope="module")
def faulty(text, tmp_path_factory):
    """One run with a spike in each phase and a NaN near its end, and every check armed.

    A phase's largest loss is that of its first 100 micro-batches, 25 steps. The two losses are
    given scales of their own, as they have with a large vocabulary.
    """
    folder = tmp_path_factory.mktemp("guards")
    recipe = tiny.write_recipe(
        folder / "tst.yaml",
        text,
        {"bag-size": 4, "superposition-steps": SWITCH},
        train_iters=STEPS,
        check_for_spiky_loss=True,
        eval_interval=1000,
        save_interval=30,
        lr=1e-3,
    )
    tiny.train_with_faults(
        recipe,
        folder / "run",
        status=75,
        spike_factor=1.5,
        spikes=SPIKES,
        nan_at=NAN,
        scale={"lm loss": 3.0},
    )
    return recipe, folder / "run", (folder / "run" / "logs" / "rank-0.log").read_text()


def test_switch_is_no_spike_with_the_check_armed_on_both_sides(faulty):
    _, _, log = faulty
    lines = log.splitlines()
    for name in ("bag loss", "lm loss"):
        armed = [line for line in lines if f"Max value for {name}" in line]
        assert len(armed) == 1
    rejected = [line for line in lines if "Unexpected result" in line]
    assert [line.partition("message=")[2] for line in rejected] == [
        "'spiky bag loss')",
        "'spiky lm loss')",
        "'found NaN in local forward loss calculation')",
    ]


def test_spike_is_reported_and_the_run_goes_on(faulty):
    _, run, log = faulty
    assert log.count("Continuing normal execution because failed validation was not fatal") == 2
    rows = tiny.metrics(run)
    assert [row["step"] for row in rows] == list(range(1, NAN))
    assert rows[SPIKES[0] - 1]["bag loss"] > 2 * rows[SPIKES[0] - 2]["bag loss"]


def test_nan_ends_the_run_before_it_reaches_a_weight(faulty):
    _, run, _ = faulty
    state = tiny.state(run)
    assert (state["status"], state["step"]) == ("stopped", NAN - 1)
    assert state["reason"].startswith("found NaN in local forward loss calculation, and again when")
    assert platform.node() in state["reason"]
    assert "Restarting on the same node will not help" in state["reason"]
    assert are_finite(run / state["checkpoint"])


def are_finite(checkpoint):
    return all(bool(tensor.isfinite().all()) for tensor in tiny.saved_weights(checkpoint).values())


@pytest.fixture(scope="module")
def restarted(faulty):
    """The state after a restart on the same machine, and after one that switches the rerun off."""
    recipe, run, _ = faulty
    tiny.train(recipe, run, status=93)
    state = tiny.state(run)
    tiny.train(recipe, run, "rerun-mode=disabled")
    return state


def test_restart_on_the_same_machine_is_the_last(restarted):
    assert (restarted["status"], restarted["step"]) == ("failed", NAN - 1)
    assert "Restarting on the same node will not help" in restarted["reason"]
    assert "rerun-mode=disabled" in restarted["reason"]


def test_run_can_be_continued_past_a_nan(faulty, restarted):
    _, run, _ = faulty
    assert tiny.state(run)["status"] == "finished"
    assert [row["step"] for row in tiny.metrics(run)] == list(range(1, STEPS + 1))
    assert are_finite(run / tiny.state(run)["checkpoint"])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_first_step_after_a_start_is_checked_too(monkeypatch, value):
    """Upstream lets it pass, steps the optimizer, and saves the NaN weights one step later."""
    machine = first_step(monkeypatch)
    machine.first_iteration_complete = False
    with pytest.raises(RuntimeError, match="in the loss of the first step after a start"):
        training_step._validate(torch.tensor(float(value)), context="lm loss")
    training_step._validate(torch.tensor(1.0), context="lm loss")
    machine.first_iteration_complete = True
    training_step._validate(torch.tensor(float(value)), context="lm loss")
    assert machine.rerun_requested


def first_step(monkeypatch):
    from types import SimpleNamespace

    from megatron.core.rerun_state_machine import RerunMode, RerunState, RerunStateMachine

    machine = RerunStateMachine(mode=RerunMode.VALIDATE_RESULTS)
    machine.state = RerunState.INITIAL_RUN
    args = SimpleNamespace(check_for_nan_in_loss_and_grad=True, check_for_spiky_loss=False)
    monkeypatch.setattr(names, "get_args", lambda: args)
    monkeypatch.setattr(names, "get_rerun_state_machine", lambda: machine)
    return machine
