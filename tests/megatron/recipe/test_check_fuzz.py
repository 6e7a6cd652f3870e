"""Every key of Megatron's with values that nobody would mean: ``check`` says so, or it starts.

``make fuzz`` tries many more, and builds model, optimizer and schedule for all that is accepted.
"""

import json
import os
import traceback

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.megatron import arguments, setup_without_values, single_step
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.training.check.check_recipe import check_recipe
from tst_megatron.training.run.pretrained import pretrained_problems

EXAMPLES = int(os.environ.get("TST_FUZZ", "300"))
"""Keys with a value each."""
BUILT = 1 if "TST_FUZZ" in os.environ else 12
"""Of what is accepted, each so many-th is built."""

KEYS = sorted(
    action.option_strings[0].removeprefix("--")
    for action in argument_parser()._actions
    if action.option_strings[0] != "-h"
)

NUMBERS = ["0", "-1", "1", "2", "3", "7", "1000000", "99999999999999999999", "-99999999999"]
FRACTIONS = ["0.0", "-1.0", "0.5", "1.5", ".nan", ".inf", "-.inf", "1.0e-300", "1.0e+30"]
WORDS = ["true", "false", "null", "x", '""', "'0'", "../x", "'[0,1,1]'", "(8,0)", "[]", "[1, 2]"]
WORDS += ["{a: 1}", "[[1]]", "adam", "'\\e]0;x'", "é", "'([1]*99999999)'"]

seen: list[int] = []


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return tiny.write_recipe(
        folder / "r.yaml", text, {"bag-size": 4, "superposition-fraction": 0.4}
    )


def end_of_a_real_start(checked) -> str:
    """What a process of its own ends with that builds everything here, as ``train`` does."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = "fine"
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
            os.environ["MASTER_PORT"] = str(tiny.launch.free_port())
            setup_without_values.forget_the_job()
            args = arguments.parse_arguments(checked.flags)
            single_step.Trainer(args, TSTGPTModelConfig.from_arguments(args, checked.recipe.tst))
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode()[-60_000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said or "it ended without a word"


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(key=st.sampled_from(KEYS), value=st.sampled_from(NUMBERS + FRACTIONS + WORDS))
def test_what_check_accepts_can_be_built_and_the_rest_is_refused_in_words(recipe, key, value):
    try:
        overrides = load_recipe(recipe, [f"{key}={value}"])
        checked = check_recipe(overrides, is_rehearsed=False)
    except RecipeError as error:
        assert error.problems and all(
            problem.isprintable() and len(problem) < 1000 for problem in error.problems
        )
        return
    if checked.arguments.pretrained_checkpoint and pretrained_problems(checked.arguments):
        return
    seen.append(1)
    if len(seen) % BUILT:
        return
    try:
        check_recipe(overrides, is_rehearsed=True)
    except RecipeError:
        return
    said = end_of_a_real_start(checked)
    assert said == "fine", f"{key}={value}: {json.dumps(said[-1500:])}"
