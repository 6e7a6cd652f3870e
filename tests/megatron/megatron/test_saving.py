"""Saves call us before and after in a fixed order, and no step is saved twice."""

import traceback
from types import SimpleNamespace

import pytest
import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint import loading, saving


def original(function):
    return getattr(function, "tst_megatron_original", function)


class Calls(list):
    """Every call in order; ``calls("save")`` is a function that records its step."""

    def __call__(self, name):
        return lambda step=None, *_, **__: self.append(name if step is None else (name, step))


@pytest.fixture
def calls(monkeypatch):
    """Megatron's arguments and collectives are stand-ins; this process is rank 0 of a job."""
    calls = Calls()
    calls.settings = SimpleNamespace(save_interval=4, async_save=False)
    calls.tracked = None
    calls.rank = 0
    monkeypatch.setattr(saving.names, "get_args", lambda: calls.settings)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: calls.rank)
    monkeypatch.setattr(torch.distributed, "barrier", calls("barrier"))
    return calls


def make_saving(calls, forced=()):
    return saving._Saving(
        *(calls("before"), calls("clear"), calls("after")), frozenset(forced), lambda: calls.tracked
    )


def fake_save(calls):
    def save_checkpoint(iteration, model=None, *, non_persistent_ckpt=False):
        calls.append(("save", iteration, calls.settings.save_interval))

    return save_checkpoint


def test_folder_is_cleared_before_any_rank_writes_into_it(calls):
    save = make_saving(calls).report_save(fake_save(calls))
    save(8)
    assert calls == [("before", 8), ("clear", 8), "barrier", ("save", 8, 4), ("after", 8)]


def test_other_ranks_wait_and_clear_nothing(calls):
    calls.rank = 3
    make_saving(calls).report_save(fake_save(calls))(8)
    assert calls == [("before", 8), "barrier", ("save", 8, 4)]


def test_checkpoint_that_is_not_to_last_is_none_of_ours(calls):
    make_saving(calls).report_save(fake_save(calls))(8, non_persistent_ckpt=True)
    assert calls == [("save", 8, 4)]


def test_asynchronous_save_is_over_when_the_tracker_names_it(calls):
    calls.settings.async_save = True
    observed = make_saving(calls)
    save, finalize = observed.report_save(fake_save(calls)), observed.report_finalized(lambda: None)
    finalize()
    save(8)
    save(12)
    calls.tracked = 4
    finalize()
    assert ("after", 4) not in calls and ("after", 8) not in calls
    for step in (8, 12):
        calls.tracked = step
        finalize()
        finalize()
    assert [call for call in calls if call[0] == "after"] == [("after", 8), ("after", 12)]


def decide(calls, monkeypatch, step, *, minutes, forced=(6,)):
    """Megatron's own decision at the end of a step, with our saves around it."""
    observed = make_saving(calls, forced=forced)
    save = observed.report_save(fake_save(calls))
    vars(calls.settings).update(
        exit_signal_handler=False,
        save="checkpoints",
        non_persistent_save_interval=None,
        exit_duration_in_mins=minutes,
        exit_interval=None,
        phase_transition_iterations=None,
    )
    monkeypatch.setattr(names.training, "get_args", lambda: calls.settings)
    monkeypatch.setattr(names.training, "get_timers", lambda: None)
    monkeypatch.setattr(
        names.training, "save_checkpoint_and_time", lambda step, *_, **__: save(step)
    )
    monkeypatch.setattr(names.training, "print_datetime", lambda _: None)
    monkeypatch.setattr(names.training, "_TRAIN_START_TIME", 0.0)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    wrapper = observed.force(original(names.training.checkpoint_and_decide_exit))
    return wrapper(None, None, None, step, 0, None, None)


@pytest.mark.parametrize(("step", "is_saved"), [(5, False), (6, True), (7, False), (8, True)])
def test_forced_step_is_saved_with_the_recipes_interval_in_its_arguments(
    calls, monkeypatch, step, is_saved
):
    assert decide(calls, monkeypatch, step, minutes=1e9) is False
    assert [call for call in calls if call[0] == "save"] == [("save", step, 4)] * is_saved
    assert calls.settings.save_interval == 4


@pytest.mark.parametrize("step", [5, 6, 8])
def test_run_that_stops_saves_its_last_step_once(calls, monkeypatch, step):
    assert decide(calls, monkeypatch, step, minutes=1e-9) is True
    assert [call for call in calls if call[0] == "save"] == [("save", step, 4)]


def test_interval_is_put_back_where_nothing_was_saved(calls):
    def fail(iteration):
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        make_saving(calls, forced=(6,)).force(fail)(6)
    assert calls.settings.save_interval == 4


def settings_of_loading(monkeypatch, pretrained=None):
    settings = SimpleNamespace(pretrained_checkpoint=pretrained)
    monkeypatch.setattr(names, "get_args", lambda: settings)


@pytest.mark.parametrize(
    ("step", "pretrained", "asked"),
    [
        (0, "imported", {"qkv.weight"}),
        (8, "imported", {"qkv.weight", "qkv._extra_state"}),
        (0, None, {"qkv.weight", "qkv._extra_state"}),
    ],
)
def test_only_the_first_start_from_imported_weights_asks_for_weights_alone(
    monkeypatch, step, pretrained, asked
):
    settings_of_loading(monkeypatch, pretrained)
    stored = SimpleNamespace(state_dict_metadata={"qkv.weight": None})
    monkeypatch.setattr(loading, "read_description", lambda _: stored)
    seen = []
    read = lambda state, _: seen.append(set(state["model"]))  # noqa: E731
    monkeypatch.setattr(names.dist_checkpointing, "load", read)

    def load(*_, **__):
        state = {"model": {"qkv.weight": None, "qkv._extra_state": None}, "iteration": step}
        names.dist_checkpointing.load(state, "imported")
        return step, 0

    monkeypatch.setattr(names.training, "load_checkpoint", load)
    loading.observe_loading(step, None)
    names.training.load_checkpoint("model")
    assert seen == [asked]
    assert names.dist_checkpointing.load is read


@pytest.mark.parametrize(("expected", "loaded"), [(8, 8), (0, 0), (None, 12)])
def test_step_that_was_loaded_is_told(monkeypatch, expected, loaded):
    settings_of_loading(monkeypatch)
    told = []
    monkeypatch.setattr(names.training, "load_checkpoint", lambda *_, **__: (loaded, 0))
    loading.observe_loading(expected, told.append)
    assert names.training.load_checkpoint("model") == (loaded, 0)
    assert told == [loaded]


@pytest.mark.parametrize(("expected", "loaded"), [(8, 0), (8, 4), (0, 8)])
def test_another_step_than_was_meant_is_no_silent_restart(monkeypatch, expected, loaded):
    settings_of_loading(monkeypatch)
    told = []
    monkeypatch.setattr(names.training, "load_checkpoint", lambda *_, **__: (loaded, 0))
    loading.observe_loading(expected, told.append)
    with pytest.raises(
        RuntimeError, match=f"loaded step {loaded}, .* goes on from step {expected}"
    ):
        names.training.load_checkpoint("model")
    assert told == []


def test_failed_save_is_told_in_one_line_with_the_cause_of_each_rank():
    """Torch's exception is none of Python's ``Exception``, and writes the tracebacks."""
    cause = OSError(28, "No space left on device")
    error = saving.CheckpointException("write", {1: (cause, traceback.StackSummary())})
    assert not isinstance(error, Exception)
    assert (
        saving.reason_of(error)
        == "checkpoint write: OSError(28, 'No space left on device') on rank 1"
    )
    assert saving.reason_of(KeyError("x")) == "KeyError('x')"


def test_retention_is_taken_from_megatron():
    args = SimpleNamespace(save_retain_interval=8)
    assert saving.take_retention(args) == 8
    assert args.save_retain_interval is None
