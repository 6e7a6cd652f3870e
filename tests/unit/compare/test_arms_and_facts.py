"""Which runs are one arm, what arms are called, and in what they differ."""

import json

import pytest
from made_runs import L, Made

from tst_megatron.compare.arms import choose_baseline, with_arms
from tst_megatron.compare.comparability.differences import compare_facts, forbidding
from tst_megatron.compare.comparability.settings import about, plain
from tst_megatron.compare.runs.open_runs import open_runs
from tst_megatron.recipe.recipe import RecipeError

PLAIN, BAGS = ((1, 1000),), ((4, 300), (1, 700))


def run(path, phases=PLAIN, **keys):
    return Made(path, phases, **keys).validation({500: 3.0, 1000: 2.0})


def arms_of(*made):
    return with_arms(open_runs([each.path for each in made])[0])


# --- arms ----------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path):
    arms = arms_of(
        run(tmp_path / "tst-seed2", BAGS, seed=2),
        run(tmp_path / "baseline-seed1", seed=1),
        run(tmp_path / "tst-seed1", BAGS, seed=1),
    )
    assert list(arms) == ["tst", "baseline"]
    assert [each.seed for each in arms["tst"]] == [1, 2]
    assert {each.arm for each in arms["tst"]} == {"tst"}


def test_what_says_how_a_run_works_makes_no_other_arm(tmp_path):
    other = {"save-interval": 7, "log-interval": 3, "tensor-model-parallel-size": 2, "lr": 0.004}
    assert len(arms_of(run(tmp_path / "a1", seed=1), run(tmp_path / "a2", seed=2, **other))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": "5e-3"},
        {"hidden-size": 128},
        {"training text": ["other"]},
        {"tst": {"stream-unit-bags": 4, "inputs": "tokens"}},
        {"given by the profile": {"transformer-impl": "transformer_engine"}},
        {"global-batch-size": 32},
    ],
    ids=str,
)
def test_what_decides_the_numbers_makes_another_arm(tmp_path, changes):
    one = run(tmp_path / "a", BAGS, seed=1)
    assert len(arms_of(one, run(tmp_path / "b", BAGS, seed=2, **changes))) == 2


def test_runs_of_one_recipe_and_seed_are_arms_by_their_names(tmp_path):
    names = ("old-seed1", "old-seed2", "new-seed1", "new-seed2")
    arms = arms_of(*(run(tmp_path / name, seed=int(name[-1])) for name in names))
    assert {name: [each.name for each in runs] for name, runs in arms.items()} == {
        "old": ["old-seed1", "old-seed2"],
        "new": ["new-seed1", "new-seed2"],
    }
    assert list(arms_of(run(tmp_path / "x"), run(tmp_path / "y"))) == ["x", "y"]


def test_branches_at_other_steps_are_one_arm_as_without_trunks(tmp_path):
    made = [run(tmp_path / name, BAGS, seed=seed) for seed, name in enumerate(("a", "b"))]
    for step, each in zip((300, 400), made, strict=True):
        said = {"format": 1, "trunk": "/t", "trunk name": "t", "step": step}
        (each.path / "branch.json").write_text(json.dumps(said))
    assert len(arms_of(*made)) == 1


@pytest.mark.parametrize(
    ("names", "arm"),
    [
        (("tst-seed1", "tst-seed2"), "tst"),
        (("tst-1", "tst-2"), "tst"),
        (("seed1/tst", "seed2/tst"), "tst"),
        (("tst-k4-seed1-long", "tst-k4-seed2-long"), "tst-k4-long"),
        (("longer-2_seed-1", "longer-2_seed-2"), "longer-2"),
        (("one", "two"), "K=4, r=0.3, 1,000 steps"),
        (("seed1", "seed2"), "K=4, r=0.3, 1,000 steps"),
    ],
    ids=str,
)
def test_arm_is_called_as_its_runs_without_their_seeds(tmp_path, names, arm):
    made = [run(tmp_path / name, BAGS, seed=seed) for seed, name in enumerate(names, 1)]
    assert list(arms_of(*made)) == [arm]


def test_arms_of_one_name_are_told_apart_by_their_phases(tmp_path):
    made = [run(tmp_path / "a" / "run", BAGS), run(tmp_path / "a" / "run-seed5", PLAIN, seed=5)]
    assert list(arms_of(*made)) == [
        "run (K=4, r=0.3, 1,000 steps)",
        "run (no superposition, 1,000 steps)",
    ]


# --- the baseline --------------------------------------------------------------------------------


def chosen(*made, named=None):
    return choose_baseline(arms_of(*made), named)


def test_only_arm_without_superposition_is_the_baseline(tmp_path):
    assert chosen(run(tmp_path / "tst", BAGS), run(tmp_path / "plain")) == "plain"


def test_named_arm_or_run_is_the_baseline(tmp_path):
    made = run(tmp_path / "tst-seed1", BAGS, seed=1), run(tmp_path / "plain")
    assert chosen(*made, named="tst") == chosen(*made, named="tst-seed1") == "tst"
    with pytest.raises(RecipeError, match="--baseline none: is no arm. The arms are tst, plain"):
        chosen(*made, named="none")


def test_first_arm_is_the_baseline_where_no_arm_stands_out(tmp_path):
    assert chosen(run(tmp_path / "a", lr=1.0), run(tmp_path / "b")) == "a"
    assert chosen(run(tmp_path / "c", BAGS, lr=1.0), run(tmp_path / "d", BAGS)) == "c"


def test_several_arms_without_superposition_are_ambiguous(tmp_path):
    made = run(tmp_path / "a"), run(tmp_path / "b", lr=1.0), run(tmp_path / "tst", BAGS)
    with pytest.raises(RecipeError) as error:
        chosen(*made)
    assert str(error.value) == (
        "a and b: are several arms without superposition, so the baseline could be any of them. "
        "Name one with --baseline NAME; the arms are a, b, tst"
    )


def test_baseline_of_equal_length_is_taken_of_several_lengths(tmp_path):
    long = run(tmp_path / "long", ((1, 2000),))
    assert chosen(long, run(tmp_path / "plain"), run(tmp_path / "tst", BAGS)) == "plain"


# --- differences ---------------------------------------------------------------------------------


def found(*made):
    differences, same = compare_facts(arms_of(*made))
    return {each.what: each for each in differences}, same


def test_arms_of_one_stream_differ_in_superposition_alone(tmp_path):
    differences, same = found(run(tmp_path / "plain"), run(tmp_path / "tst", BAGS))
    assert list(differences) == ["superposition"]
    assert differences["superposition"].gravity == "expected"
    assert differences["superposition"].values == {
        "plain": "bags: none",
        "tst": "bags: K=4 for 300 steps",
    }
    assert set(same) == {
        *("tokenizer", "held-out text", "held-out positions", "training text"),
        *("order of the text", "parameters", "device"),
    }
    assert same["order of the text"].startswith("order version 2, units of 4 x 128 tokens")
    assert same["order of the text"].endswith("by the stream")


def changed(made, **values):
    """Change what a start recorded; a name with a dot is inside a block."""
    said = json.loads((made.path / "facts.json").read_text())
    for name, value in values.items():
        *blocks, last = name.split("/")
        inner = said
        for block in blocks:
            inner = inner[block]
        inner[last] = value
    (made.path / "facts.json").write_text(json.dumps(said))
    return made


@pytest.mark.parametrize(
    ("fact", "value", "what", "gravity"),
    [
        ("stream/tokenizer", "another", "tokenizer", "forbids"),
        ("held-out/validation/sha256", ["another"], "held-out text", "forbids"),
        ("held-out/validation/sequences", 32, "held-out positions", "matters"),
        ("held-out/validation/latent positions", 2 * L, "held-out positions", "matters"),
        ("stream/order version", 1, "order of the text", "matters"),
        ("stream/tst.stream-unit-bags", 8, "order of the text", "matters"),
        ("parameters", {"total": 1_000_000, "active": 500_000}, "parameters", "matters"),
        ("device", "NVIDIA H200", "device", "matters"),
    ],
)
def test_facts_that_differ_are_said_with_their_gravity(tmp_path, fact, value, what, gravity):
    plain_run, tst = run(tmp_path / "plain"), changed(run(tmp_path / "tst", BAGS), **{fact: value})
    differences, same = found(plain_run, tst)
    assert differences[what].gravity == gravity and what not in same
    assert len(set(differences[what].values.values())) == 2
    forbids = forbidding(list(differences.values()), "tst", "plain")
    assert (forbids is not None) == (gravity == "forbids")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"lr": 0.01}, "learning rate"),
        ({"lr-wsd-decay-iters": 100}, "learning rate"),
        ({"adam-beta2": 0.99}, "optimizer"),
        ({"weight-decay": 0.2}, "optimizer"),
        ({"global-batch-size": 32}, "batch and sequence"),
        ({"num-layers": 4}, "model"),
        ({"fp8-format": "e4m3"}, "arithmetic"),
        ({"tensor-model-parallel-size": 2}, "layout over ranks"),
        ({"eod-mask-loss": True}, "other settings"),
        ({"training text": ["another"]}, "training text"),
    ],
    ids=str,
)
def test_settings_that_differ_are_sorted_by_what_they_are_about(tmp_path, changes, what):
    differences, _ = found(run(tmp_path / "plain"), run(tmp_path / "tst", BAGS, **changes))
    assert what in differences and differences[what].gravity == "matters"
    key, value = next(iter(changes.items()))
    shown = differences[what].values
    assert shown["tst"] != shown["plain"]
    assert what == "training text" or f"{key}: {plain(value)}" in shown["tst"]


def test_settings_that_change_no_number_are_not_said(tmp_path):
    keys = {"save-interval": 3, "log-interval": 5, "num-workers": 9, "eval-interval": 10}
    differences, _ = found(run(tmp_path / "plain"), run(tmp_path / "tst", BAGS, **keys))
    assert list(differences) == ["superposition"]


def test_one_setting_in_two_spellings_is_no_difference(tmp_path):
    one = run(tmp_path / "plain", lr=0.004)
    differences, _ = found(one, run(tmp_path / "tst", BAGS, lr="4e-3"))
    assert list(differences) == ["superposition"]


def test_graver_differences_come_first(tmp_path):
    tst = changed(run(tmp_path / "tst", BAGS, lr=1.0), **{"stream/tokenizer": "another"})
    differences, _ = found(run(tmp_path / "plain"), tst)
    gravities = [each.gravity for each in differences.values()]
    assert gravities == ["forbids", "matters", "expected"]


def test_other_seeds_and_lengths_are_said(tmp_path):
    made = run(tmp_path / "plain", ((1, 2000),), seed=1), run(tmp_path / "tst", BAGS, seed=2)
    differences, same = found(*made)
    assert differences["seeds"].values == {"plain": "1", "tst": "2"}
    assert "order of the text" not in same
    assert "train-iters: 2000" in differences["length"].values["plain"]


def test_other_versions_are_said(tmp_path):
    made = run(tmp_path / "plain"), run(tmp_path / "tst", BAGS)
    for version, each in zip(("2.11.0", "2.12.0"), made, strict=True):
        said = {"torch": version, "numpy": "2.5", "device": "cpu", "layouts": []}
        (each.path / "versions.json").write_text(json.dumps(said))
    differences, _ = found(*made)
    assert differences["versions"].values == {"plain": "torch 2.11.0", "tst": "torch 2.12.0"}


def test_what_earlier_versions_did_not_record_is_not_taken_to_be_the_same(tmp_path):
    made = run(tmp_path / "plain").without_facts(), run(tmp_path / "tst", BAGS).without_facts()
    differences, same = found(*made)
    for what in ("tokenizer", "held-out text", "order of the text"):
        assert differences[what].values == {"plain": "not recorded", "tst": "not recorded"}
        assert differences[what].gravity == "matters" and what not in same
    assert "training text" in same
    assert same["held-out positions"].startswith("64 sequences of 128 positions")


def test_tokenizer_of_an_earlier_run_is_known_by_its_file(tmp_path):
    made = run(tmp_path / "plain").without_facts(), run(tmp_path / "tst", BAGS).without_facts()
    for text, each in zip(("one", "two"), made, strict=True):
        (each.path / "checkpoints").mkdir()
        (each.path / "checkpoints" / "tokenizer.model").write_text(text)
    differences, _ = found(*made)
    assert differences["tokenizer"].gravity == "forbids"


def test_arms_without_settings_are_said_once(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("step,val_loss\n500,3.0\n1000,2.0\n")
    runs, _ = open_runs([run(tmp_path / "plain").path, path])
    differences, same = compare_facts(with_arms(runs))
    assert [each.what for each in differences] == ["all settings", "seeds"]
    assert differences[0].values == {"plain": "recorded", "other": "not recorded"} and same == {}


def test_one_arm_has_no_differences(tmp_path):
    assert found(run(tmp_path / "a")) == ({}, {})


def test_values_are_spelled_alike():
    assert {plain(value) for value in ("4e-3", 0.004, "0.0040", [0.004])} == {"0.004"}
    assert {plain(value) for value in (True, "True")} == {"true"}
    assert {plain(value) for value in (None, "None")} == {"none"}
    assert plain([1, 2.0]) == "[1, 2]" and plain("WSD") == "WSD"


def test_keys_are_about_something():
    assert [about(key) for key in ("min-lr", "clip-grad", "train-iters", "tst.inputs")] == [
        *("learning rate", "optimizer", "length", "superposition"),
    ]
