"""What ``check`` makes of asynchronous saves: Megatron's three flags are one decision here."""

import pytest

from tst_megatron.megatron.cpu import host

host.install()

from checks import check, problems

from tst_megatron.megatron import arguments
from tst_megatron.recipe.rules import async_saves

TST = {"bag-size": 4, "superposition-fraction": 0.4}


def flags_of(text, **changes):
    return " ".join(check(text, TST, **changes).flags)


def test_async_save_brings_its_worker_and_a_strategy_that_is_installed(text):
    flags = flags_of(text, async_save=True)
    assert "--async-save" in flags
    assert flags.count("--use-persistent-ckpt-worker") == 1
    assert flags.count("--async-strategy mcore") == 1


def test_async_save_as_megatron_wants_it_said_is_left_as_it_is(text):
    keys = {"async_save": True, "use_persistent_ckpt_worker": True, "async_strategy": "mcore"}
    flags = flags_of(text, **keys)
    assert flags.count("--use-persistent-ckpt-worker") == 1
    assert flags.count("--async-strategy") == 1


def test_nothing_is_added_without_async_save(text):
    assert "--use-persistent-ckpt-worker" not in flags_of(text)


def test_megatron_saves_asynchronously_after_its_own_validation(text):
    checked = check(text, TST, async_save=True)
    args = arguments.validate_arguments(checked.flags, world_size=1)
    assert (args.async_save, args.async_strategy) == (True, "mcore")


@pytest.mark.parametrize("is_installed", [True, False])
def test_default_strategy_is_kept_where_its_package_and_a_gpu_are(text, monkeypatch, is_installed):
    monkeypatch.setattr(async_saves, "has_nvidia_resiliency_ext", lambda: is_installed)
    flags = flags_of(text, async_save=True, profile=None)
    assert ("--async-strategy mcore" in flags) is not is_installed
    assert "--async-strategy mcore" in flags_of(text, async_save=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"use_persistent_ckpt_worker": False},
            "use-persistent-ckpt-worker: false beside async-save, which needs the worker. Remove "
            "one of the two",
        ),
        (
            {"async_strategy": "nvrx"},
            "async-strategy: nvrx needs a GPU and nvidia-resiliency-ext (pip install "
            "nvidia-resiliency-ext). Remove the key, or use mcore",
        ),
    ],
    ids=["no worker", "no package"],
)
def test_keys_that_contradict_async_save_are_refused(text, changes, said):
    assert problems(text, TST, async_save=True, **changes) == [said]


def test_checks_of_results_are_on_unless_switched_off():
    """``check`` need not warn of them: these defaults of Megatron's are the safe ones."""
    defaults = arguments.argument_parser().parse_args([])
    assert defaults.check_for_nan_in_loss_and_grad is True
    assert defaults.rerun_mode == "validate_results"
