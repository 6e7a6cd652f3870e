"""Real Megatron under the CPU host, which has to come before any import of Megatron."""

import pytest
import tiny

from tst_megatron.megatron.cpu import host

host.install()

SHORT = {"train_iters": 24, "save_interval": 4, "eval_interval": 6, "eval_iters": 3}
SHORT_TST = {"bag-size": 4, "superposition-steps": 8}


@pytest.fixture(scope="session")
def short_recipe(text, tmp_path_factory):
    """Write a recipe of a short run of one rank: ``short_recipe(**changes)``."""
    folder = tmp_path_factory.mktemp("short")

    def write(name, **changes):
        return tiny.write_recipe(folder / f"{name}.yaml", text, SHORT_TST, **{**SHORT, **changes})

    return write


@pytest.fixture(scope="session")
def short_run(short_recipe, tmp_path_factory):
    """The run folder of that recipe, never interrupted and saved synchronously."""
    folder = tmp_path_factory.mktemp("short_run")
    tiny.train(short_recipe("whole"), folder / "run")
    return folder / "run"
