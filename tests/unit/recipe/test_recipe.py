import os

import pytest
import yaml

from tst_megatron.recipe.recipe import RecipeError, load_recipe


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def recipe(tmp_path):
    return write(tmp_path / "recipe.yaml", "num-layers: 4\nlr: 0.1\ntst:\n  bag-size: 4\n")


def problems_of(path, *overrides):
    return list(load_recipe(path, overrides).problems)


# --- files and bases ------------------------------------------------------------------------------


def test_recipe_wins_over_its_base_and_the_base_over_its_own(tmp_path):
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared" / "first.yaml", "num-layers: 1\nlr: 0.1\nseed: 1\nprofile: cpu\n")
    write(tmp_path / "shared" / "second.yaml", "base: first.yaml\nnum-layers: 2\nlr: 0.2\n")
    last = write(tmp_path / "last.yaml", "base: shared/second.yaml\nnum-layers: 3\n")
    loaded = load_recipe(last)
    assert loaded.megatron == {"num-layers": 3, "lr": 0.2, "seed": 1}
    assert loaded.profile == "cpu"
    assert loaded.path == last
    assert loaded.problems == ()


def test_tst_block_is_merged_key_by_key_and_data_is_replaced(tmp_path):
    block = "tst:\n  bag-size: 1\n  stream-unit-bags: 4\ndata:\n  old: 1.0\n"
    write(tmp_path / "base.yaml", block)
    child = "base: base.yaml\ntst:\n  bag-size: 4\n  superposition-fraction: 0.4\ndata:\n  new: 2\n"
    loaded = load_recipe(write(tmp_path / "child.yaml", child))
    assert loaded.tst.bag_size == 4
    assert loaded.tst.superposition_fraction == 0.4
    assert loaded.tst.stream_unit_bags == 4
    assert {str(path): weight for path, weight in loaded.data.items()} == {"new": 2.0}


def test_recipe_without_a_tst_block_is_ordinary_training(tmp_path):
    loaded = load_recipe(write(tmp_path / "plain.yaml", "num-layers: 1\n"))
    assert loaded.tst.entries() == [(1, None)]
    assert loaded.tst.unit_chunks() == 1
    assert loaded.data == {}
    assert loaded.profile is None


def test_bases_that_form_a_loop_are_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: ./a.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml: its base leads back to itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["", "just words\n", "- a list\n", "7\n"])
def test_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match=r"r\.yaml: a recipe is a list of `key: value` lines"):
        load_recipe(write(tmp_path / "r.yaml", text))


def test_missing_recipe_and_missing_base_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.yaml: there is no such recipe"):
        load_recipe(tmp_path / "absent.yaml")
    child = write(tmp_path / "child.yaml", "base: gone.yaml\n")
    with pytest.raises(RecipeError, match=r"gone\.yaml: there is no such recipe"):
        load_recipe(child)


def test_file_that_is_not_yaml_is_refused_with_the_line(tmp_path):
    broken = write(tmp_path / "broken.yaml", "lr: 1\nnum-layers: [4\n")
    with pytest.raises(RecipeError, match=r"broken\.yaml: cannot be read as YAML") as caught:
        load_recipe(broken)
    assert "line" in str(caught.value)


def test_file_that_is_no_text_and_folder_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00lr")
    for place, words in ((tmp_path / "binary.yaml", "is not UTF-8"), (tmp_path, "is a folder")):
        with pytest.raises(RecipeError, match=f"{place}: {words}"):
            load_recipe(place)


# --- nothing is lost in silence -------------------------------------------------------------------


def test_second_block_or_key_is_named_with_its_file_and_both_lines(tmp_path):
    write(tmp_path / "base.yaml", "lr: 0.1\nlr: 0.2\ntst:\n  bag-size: 4\n")
    child = write(tmp_path / "child.yaml", "base: base.yaml\ntst:\n  bag-size: 2\n  bag-size: 8\n")
    assert problems_of(child) == [
        f"{tmp_path / 'child.yaml'}: tst.bag-size: stands on line 3 and again on line 4. "
        "Keep one of them",
        f"{tmp_path / 'base.yaml'}: lr: stands on line 1 and again on line 2. Keep one of them",
    ]
    two = "tst:\n  bag-size: 4\nlr: 1\ntst:\n  keep-last-checkpoints: 2\n"
    (problem,) = problems_of(write(tmp_path / "two.yaml", two))
    assert "tst: stands on line 1 and again on line 4." in problem
    (problem,) = problems_of(child.with_name("two.yaml"), "data={a: 1, a: 2}")[1:]
    assert problem == "a: stands on line 1 and again on line 1. Keep one of them"


@pytest.mark.parametrize("nothing", ["", "  # bag-size: 8\n", " null\n", " ~\n"])
def test_empty_block_of_a_derived_recipe_changes_nothing(tmp_path, nothing):
    base = "tst:\n  bag-size: 4\n  superposition-fraction: 0.3\ndata:\n  text: 1.0\n"
    write(tmp_path / "base.yaml", base)
    child = f"base: base.yaml\ntst:{nothing or chr(10)}data:{nothing or chr(10)}"
    if nothing.startswith("  #"):
        child = f"base: base.yaml\ntst:\n{nothing}data:\n{nothing}"
    loaded = load_recipe(write(tmp_path / "child.yaml", child))
    assert (loaded.tst.bag_size, loaded.tst.superposition_fraction) == (4, 0.3)
    assert list(map(str, loaded.data)) == ["text"]
    assert loaded.problems == ()


@pytest.mark.parametrize("value", ["false", "0", "[]", "''"])
def test_block_that_is_none_is_no_empty_block(recipe, value):
    assert [problem[:5] for problem in problems_of(recipe, f"tst={value}")] == ["tst: "]
    assert [problem[:6] for problem in problems_of(recipe, f"data={value}")] == ["data: "]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("superposition-fraction: 1e-1", None),
        ("superposition-fraction: .25", None),
        ("superposition-steps: 010", "tst.superposition-steps: '010' is not a whole number"),
        ("superposition-steps: 1:30", "tst.superposition-steps: '1:30' is not a whole number"),
        ("reset-optimizer: on", "tst.reset-optimizer: 'on' is not true or false"),
    ],
)
def test_numbers_of_our_own_block_are_what_they_say(tmp_path, written, said):
    found = problems_of(write(tmp_path / "r.yaml", f"tst:\n  {written}\n"))
    assert [problem[: len(said or "")] for problem in found] == ([said] if said else [])


def test_long_chain_of_bases_and_a_loop_of_links_end_in_a_sentence(tmp_path):
    for number in range(1200):
        write(tmp_path / f"{number}.yaml", f"base: {number + 1}.yaml\n")
    with pytest.raises(RecipeError, match=r"/0\.yaml: has more than 20 bases"):
        load_recipe(tmp_path / "0.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(RecipeError, match=r"loop\.yaml: cannot be read \(Too many levels"):
        load_recipe(tmp_path / "loop.yaml")


def test_pipe_in_the_place_of_a_recipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"pipe\.yaml: is no file"):
        load_recipe(tmp_path / "pipe.yaml")


def test_values_in_messages_are_cut_and_cannot_command_a_terminal(recipe):
    for override in (f"data={'x' * 100_000}", f"data=[{'1, ' * 100_000}]"):
        (problem,) = problems_of(recipe, override)
        # What goes out is cut by the error, so that it holds for every problem.
        assert len(RecipeError([problem]).problems[0]) < 700
    error = RecipeError(["\x1b]0;x\a=1 \x9b31m \u202e é 字"])
    assert error.problems == (r"\x1b]0;x\x07=1 \x9b31m \u202e é 字",)
    assert str(error) == error.problems[0]


# --- overrides ------------------------------------------------------------------------------------


def test_overrides_win_and_dots_reach_into_a_block(recipe):
    overrides = ["lr=0.5", "tst.superposition-fraction=0.25", "profile=cpu", "qk-layernorm=true"]
    loaded = load_recipe(recipe, [*overrides, "lr=0.6"])
    assert loaded.megatron == {"num-layers": 4, "lr": 0.6, "qk-layernorm": True}
    assert loaded.tst.superposition_fraction == 0.25
    assert loaded.tst.bag_size == 4
    assert loaded.profile == "cpu"


def test_override_makes_a_block_that_is_not_there(tmp_path):
    plain = write(tmp_path / "plain.yaml", "num-layers: 1\n")
    assert load_recipe(plain, ["tst.bag-size=8"]).tst.bag_size == 8


def test_override_may_hold_a_block_an_equals_sign_or_nothing(recipe):
    loaded = load_recipe(
        recipe, ['data={"a.b/text": 1.5}', "split-text=x=y", "lr=", "profile=null"]
    )
    assert {str(path): weight for path, weight in loaded.data.items()} == {"a.b/text": 1.5}
    assert loaded.megatron["split-text"] == "x=y"
    assert loaded.megatron["lr"] is None
    assert loaded.profile is None


def test_overrides_leave_the_next_load_alone(recipe):
    load_recipe(recipe, ["tst.bag-size=8", "lr=9"])
    assert load_recipe(recipe).tst.bag_size == 4
    assert load_recipe(recipe).megatron["lr"] == 0.1


@pytest.mark.parametrize("override", ["lr", "=3", "", "--nproc"])
def test_override_that_is_not_key_value_is_refused(recipe, override):
    with pytest.raises(RecipeError, match="an override is key=value, such as tst.bag-size=4") as e:
        load_recipe(recipe, [override])
    assert str(e.value).startswith(f"{override}: ")


def test_override_that_is_not_yaml_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"lr=\[1: .*YAML"):
        load_recipe(recipe, ["lr=[1"])


def test_base_as_an_override_is_refused_in_words_that_help(recipe):
    with pytest.raises(RecipeError, match="base.*recipe file"):
        load_recipe(recipe, ["base=other.yaml"])


# --- the blocks that are ours ---------------------------------------------------------------------


def test_unknown_key_of_tst_is_named_with_the_nearest(recipe):
    assert problems_of(recipe, "tst.bag-sise=4") == [
        "tst.bag-sise: there is no such key. Did you mean tst.bag-size?"
    ]
    assert problems_of(recipe, "tst.bag_size=4") == [
        "tst.bag_size: there is no such key. Did you mean tst.bag-size?"
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("tst.bag-size=4.0", "tst.bag-size: 4.0 is not a whole number"),
        ("tst.bag-size=four", "tst.bag-size: 'four' is not a whole number"),
        ("tst.bag-size=true", "tst.bag-size: True is not a whole number"),
        ("tst.bag-size=", "tst.bag-size: None is not a whole number"),
        (
            "tst.superposition-fraction=a lot",
            "tst.superposition-fraction: 'a lot' is not a number",
        ),
        (
            "tst.superposition-fraction=false",
            "tst.superposition-fraction: False is not a number",
        ),
        (
            "tst.superposition-steps=2.5",
            "tst.superposition-steps: 2.5 is not a whole number or empty",
        ),
        ("tst.schedule=4", "tst.schedule: 4 is not a list of [bag size, steps] or empty"),
        (
            "tst.schedule=[[4, x]]",
            "tst.schedule: [[4, 'x']] is not a list of [bag size, steps] or empty",
        ),
        ("tst.inputs=bag", "tst.inputs: 'bag' is not bags or tokens"),
        ("tst.slot-weights=1", "tst.slot-weights: 1 is not uniform or 1/i or exp(-i)"),
        ("tst.reset-optimizer=1", "tst.reset-optimizer: 1 is not true or false"),
        ("tst=4", "tst: 4 is not a block of `key: value` lines"),
    ],
)
def test_wrong_type_in_tst_is_named(recipe, override, problem):
    assert problems_of(recipe, override) == [problem]


def test_all_problems_of_one_recipe_are_kept_together(recipe):
    wrong = ["tst.bag-size=x", "tst.baag=1", "data=here", "profile=tpu"]
    assert [problem.split(":")[0] for problem in problems_of(recipe, *wrong)] == [
        "tst.bag-size",
        "tst.baag",
        "data",
        "profile",
    ]


def test_whole_number_is_a_share_and_nothing_stands_for_the_default(recipe):
    loaded = load_recipe(recipe, ["tst.superposition-fraction=1", "tst.stream-unit-bags="])
    assert loaded.problems == ()
    assert loaded.tst.stream_unit_bags is None


@pytest.mark.parametrize("schedule", ["[[4.5, 0.5], [1, 0.5]]", "[[4], [1, 1.0]]", "[[4, 1, 1]]"])
def test_schedule_entry_that_is_no_pair_of_bag_size_and_steps_is_named(recipe, schedule):
    (problem,) = problems_of(recipe, f"tst.schedule={schedule}")
    assert problem.startswith(f"tst.schedule: {schedule} is not a list of [bag size, steps]")


def test_schedule_is_read_as_bag_sizes_and_steps(recipe):
    tst = load_recipe(recipe, ["tst.schedule=[[8, 0.25], [4, 30], [1, 0.5]]"]).tst
    assert tst.entries() == [(8, 0.25), (4, 30), (1, 0.5)]
    assert tst.unit_chunks() == 8


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("here", "data: 'here' is not a block of `prepared folder: weight` lines"),
        ("{a: 0}", "data: the weight 0 of a must be a number above 0"),
        ("{a: -1.5}", "data: the weight -1.5 of a must be a number above 0"),
        ("{a: much}", "data: the weight 'much' of a must be a number above 0"),
        ("{a: true}", "data: the weight True of a must be a number above 0"),
        ("{a: }", "data: the weight None of a must be a number above 0"),
        ("{a: .nan}", "data: the weight nan of a must be a number above 0"),
    ],
)
def test_wrong_data_block_is_named(recipe, data, problem):
    assert problems_of(recipe, f"data={data}") == [problem]


def test_data_keeps_good_folders_beside_a_bad_weight(recipe):
    loaded = load_recipe(recipe, ["data={a: 0, b: 2, c/d: 0.5}"])
    assert {str(path): weight for path, weight in loaded.data.items()} == {
        "a": 1.0,
        "b": 2.0,
        "c/d": 0.5,
    }


def test_unknown_profile_is_named_with_those_there_are(recipe):
    assert problems_of(recipe, "profile=gpu") == [
        "profile: gpu is none of bf16, tuned, mxfp8, fp8, cpu"
    ]


# --- what a resolved recipe says ------------------------------------------------------------------


def test_resolved_recipe_is_plain_and_survives_yaml(recipe):
    resolved = load_recipe(recipe, ["data={b/text: 1}", "adam-eps=1.0e-8"]).resolved()
    assert resolved == {
        "adam-eps": 1e-8,
        "lr": 0.1,
        "num-layers": 4,
        "profile": None,
        "data": {"b/text": 1.0},
        "tst": {
            "bag-size": 4,
            "superposition-fraction": 0.0,
            "superposition-steps": None,
            "schedule": None,
            "stream-unit-bags": None,
            "inputs": "bags",
            "targets": "bags",
            "slot-weights": "uniform",
            "linear-cross-entropy": False,
            "reset-embeddings": False,
            "reset-optimizer": False,
            "max-epochs": 1,
            "keep-last-checkpoints": None,
        },
    }
    assert yaml.safe_load(yaml.safe_dump(resolved, sort_keys=False)) == resolved


def test_schedule_of_a_recipe_is_in_whole_steps(recipe):
    sizes = ["train-iters=10", "seq-length=32", "global-batch-size=2"]
    schedule = load_recipe(recipe, [*sizes, "tst.superposition-fraction=0.39"]).schedule()
    assert [(phase.bag_size, phase.num_steps) for phase in schedule.phases] == [(4, 3), (1, 7)]
    assert schedule.raw_tokens_before(10) == 2 * 32 * (3 * 4 + 7)


def test_switches_reach_the_phases(recipe):
    sizes = ["train-iters=10", "seq-length=32", "global-batch-size=2"]
    switches = ["tst.superposition-steps=3", "tst.inputs=tokens", "tst.slot-weights=1/i"]
    loaded = load_recipe(recipe, [*sizes, *switches])
    first, last = loaded.schedule().phases
    assert (first.num_inputs, first.num_targets) == (1, 4)
    assert (last.num_inputs, last.num_targets) == (1, 1)
    assert loaded.tst.slot_weights == "1/i"
