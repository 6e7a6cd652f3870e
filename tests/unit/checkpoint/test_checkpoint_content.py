"""A checkpoint whose bytes are whole is proven: values, master copies, model, step and record."""

import json
import random
import shutil

import pytest
import torch
from forged_checkpoints import forge, save, weights, with_buckets, with_state

from tst_megatron.checkpoint.record import RECORD
from tst_megatron.checkpoint.whole import examine, problems, record_save

ROUTER = "decoder.layers.mlp.router.weight"
FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
BUCKET = (
    "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32)"
    ".bucket_idx_0"
)
FORMATS = {"state": with_state, "buckets": with_buckets, "weights": dict}


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    return {name: save(folder / name, make(weights())) for name, make in FORMATS.items()}


@pytest.fixture
def checkpoint_of(formats, tmp_path):
    def copied(name):
        shutil.copytree(formats[name], tmp_path / name / formats[name].name)
        return tmp_path / name / formats[name].name

    return copied


def put(index, value):
    def change(tensor):
        tensor.view(-1)[index] = value

    return change


@pytest.mark.parametrize("name", FORMATS)
def test_whole_checkpoint_of_each_format_says_what_was_not_compared(checkpoint_of, name):
    found = examine(checkpoint_of(name), deep=True)
    assert found.problems == []
    expected = ["its save wrote no saved.json: the small files have no hash"]
    expected += ["holds no optimizer state"] if name == "weights" else []
    assert found.notes == expected


FORGED = [
    ("weights", ROUTER, put(3, torch.nan), f"{ROUTER} has 1 values that are not finite"),
    ("state", ROUTER, put(3, torch.inf), f"{ROUTER} has 1 values that are not finite"),
    (
        "state",
        f"optimizer.state.exp_avg_sq.{FC1}",
        put(5, -1e-9),
        f"optimizer.state.exp_avg_sq.{FC1} holds squares, and 1 of them are negative",
    ),
    (
        "state",
        f"optimizer.state.exp_avg.{FC1}",
        put(5, torch.nan),
        f"optimizer.state.exp_avg.{FC1} has 1 values that are not finite",
    ),
    ("state", FC1, put(700, 9.0), f"rounded, are not the weights: 1 of 8 differ ({FC1})"),
    (
        "state",
        f"optimizer.state.param.{FC1}",
        lambda tensor: tensor.view(-1)[700:702].mul_(1.02),
        f"rounded, are not the weights: 1 of 8 differ ({FC1})",
    ),
    ("buckets", f"{BUCKET}.exp_avg_sq", put(1, -1.0), "and 1 of them are negative"),
    ("buckets", f"{BUCKET}.exp_avg", put(1, torch.inf), "has 1 values that are not finite"),
    ("buckets", f"{BUCKET}.param", put(20, 9.0), "rounded, are not the weights: "),
    ("buckets", FC1, put(700, 9.0), f"and 1 weights are in none of them ({FC1})"),
]


@pytest.mark.parametrize("number", range(len(FORGED)))
def test_values_that_no_run_has_are_named(checkpoint_of, number):
    name, tensor, change, sentence = FORGED[number]
    checkpoint = checkpoint_of(name)
    forge(checkpoint, tensor, change)
    assert problems(checkpoint) == []
    found = problems(checkpoint, deep=True)
    assert any(sentence in problem for problem in found), found
    assert "megatron-core 0.19.2" not in "".join(found)


def test_shifted_state_of_several_buckets_is_named_with_what_can_be_done(tmp_path):
    """As Megatron saves it: each copy begins some values too late in the bucket."""
    state = with_state(weights())
    for name in state:
        if name.startswith("optimizer.") and not name.endswith("embedding.word_embeddings.weight"):
            state[name] = state[name].flatten().roll(3).reshape(state[name].shape)
    content = {"distrib_optim_sharding_type": "fully_reshardable"}
    checkpoint = save(tmp_path, state, content_metadata=content, overlap_grad_reduce=True)
    (problem,) = problems(checkpoint, deep=True)
    assert "are not the weights: 7 of 8 differ" in problem
    assert "megatron-core 0.19.2 saves dist-ckpt-optim-fully-reshardable" in problem
    for remedy in ("older checkpoint", "pretrained-checkpoint", "export", "one bucket"):
        assert remedy in problem


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def with_shape(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape, dtype=torch.bfloat16)})


def layers_in_a_list(state):
    for name in [name for name in state if "decoder.layers." in name]:
        stacked = state.pop(name)
        for number, layer in enumerate(stacked):
            state[name.replace("layers.", f"layers.{number}.")] = layer.clone()


def lacking_in_a_list(*names):
    def change(state):
        layers_in_a_list(state)
        for name in names:
            del state[name]

    return change


LACKING = {
    "output table": (without("output_layer.weight"), "output_layer.weight is missing"),
    "input table": (
        without("embedding.word_embeddings.weight"),
        "embedding.word_embeddings.weight is missing",
    ),
    "rows of a table": (
        with_shape("output_layer.weight", 32, 8),
        "output_layer.weight is (32, 8) and should be (40, 8)",
    ),
    "last norm": (
        without("decoder.final_layernorm.weight"),
        "decoder.final_layernorm.weight is missing",
    ),
    "a layer": (with_shape(ROUTER, 1, 3, 8), f"{ROUTER} has 1 layers of 2"),
    "an expert": (with_shape(FC1, 2, 2, 16, 8), f"{FC1.split('layers.')[1]} has 2 experts of 3"),
    "routers": (without(ROUTER), "decoder.layers: mlp.router.weight is missing"),
    "experts": (without(FC1), "the first matrices of its experts are missing"),
    "a layer of a list": (
        lacking_in_a_list(
            *(
                f"decoder.layers.1.{part}.weight"
                for part in (
                    "self_attention.linear_qkv",
                    "self_attention.linear_proj",
                    "mlp.router",
                    "mlp.experts.experts.linear_fc1",
                    "mlp.experts.experts.linear_fc2",
                )
            )
        ),
        "layer 1 of 2 is missing",
    ),
    "a part of one layer of a list": (
        lacking_in_a_list("decoder.layers.1.mlp.router.weight"),
        "layer 1: mlp.router.weight is missing",
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_parts_of_the_model_that_are_not_there_are_named(tmp_path, name):
    change, sentence = LACKING[name]
    state = weights()
    change(state)
    assert any(problem.endswith(sentence) for problem in problems(save(tmp_path, state)))


def test_layers_in_a_list_and_tied_tables_are_whole(tmp_path):
    state = weights()
    layers_in_a_list(state)
    assert problems(save(tmp_path / "list", state), deep=True) == []
    state = weights()
    del state["output_layer.weight"]
    tied = save(tmp_path / "tied", state, untie_embeddings_and_output_weights=False)
    assert problems(tied, deep=True) == []


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        (ROUTER, f"{ROUTER} is missing, and its optimizer state (exp_avg) is there"),
        (f"optimizer.state.exp_avg.{ROUTER}", f"{ROUTER} has no exp_avg in the optimizer state"),
        (f"optimizer.state.param.{ROUTER}", f"{ROUTER} has no master copy in the optimizer state"),
    ],
)
def test_holes_in_the_optimizer_state_are_named(tmp_path, lost, sentence):
    state = with_state(weights())
    del state[lost]
    # The same model without this part.
    checkpoint = save(tmp_path, state, num_layers=None)
    assert problems(checkpoint, deep=True)[0].startswith(sentence)


# --- the step ------------------------------------------------------------------------------------


def test_checkpoint_of_another_step_than_its_name_is_not_whole(checkpoint_of):
    checkpoint = checkpoint_of("weights")
    renamed = checkpoint.rename(checkpoint.with_name("iter_0000020"))
    assert problems(renamed) == ["the folder's name says step 20, and what is in it is of step 8"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iteration": None}, "the folder's name says step 8, and what is in it is of step None"),
        (
            {"opt_param_scheduler": {"num_steps": 28}},
            "the learning rate's count of samples is 28, and step 8 makes it 32",
        ),
        (
            {"optimizer": {0: {"optimizer": {"param_groups": [{"step": 7.0}]}}}},
            "the optimizer is of step 7, and the checkpoint of step 8",
        ),
        ({"consumed_train_samples": 36}, "the count of samples is 36, and step 8 makes it 32"),
    ],
)
def test_counts_of_another_step_are_named(tmp_path, changes, sentence):
    assert problems(save(tmp_path, weights(), **changes)) == [sentence]


def test_counts_that_may_lag_are_no_damage(tmp_path):
    """The optimizer counts anew after a reset; with fp16, neither counts skipped steps."""
    lag = {"optimizer": {"optimizer": {"param_groups": [{"step": 5.0}]}}}
    reset = save(tmp_path / "reset", weights(), tst={"reset-optimizer": True}, **lag)
    assert problems(reset) == []
    lag["opt_param_scheduler"] = {"num_steps": 20}
    assert problems(save(tmp_path / "fp16", weights(), fp16=True, **lag)) == []


# --- the record ----------------------------------------------------------------------------------


def test_recorded_checkpoint_is_whole_and_an_older_one_too(checkpoint_of):
    checkpoint = checkpoint_of("state")
    record_save(checkpoint)
    found = examine(checkpoint, deep=True)
    assert (found.problems, found.notes) == ([], [])
    (checkpoint / RECORD).unlink()
    assert problems(checkpoint, deep=True) == []


def test_exchanged_shards_are_noticed_without_reading_them(formats, checkpoint_of):
    checkpoint = checkpoint_of("state")
    record_save(checkpoint)
    for tensor in weights():
        forge(checkpoint, f"optimizer.state.exp_avg.{tensor}", lambda values: values.mul_(0.5))
        forge(checkpoint, f"optimizer.state.param.{tensor}", lambda values: values.mul_(0.5))
        forge(checkpoint, f"optimizer.state.exp_avg_sq.{tensor}", lambda values: values.mul_(0.5))
    (problem,) = problems(checkpoint)
    assert problem == "__0_0.distcp is not the one that saved.json says was saved"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", '{"files": 5}', '{"files": {}, "shards": {}, "step": 8}', "[" * 100_000],
)
def test_record_of_other_content_is_damage(checkpoint_of, text):
    checkpoint = checkpoint_of("weights")
    (checkpoint / RECORD).write_text(text)
    assert problems(checkpoint) != []


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"files": 5}', '{"files": ["a"]}', '{"files": {"../x": "0"}}', "[" * 100_000],
)
def test_manifest_of_other_content_is_damage(checkpoint_of, text):
    checkpoint = checkpoint_of("weights")
    (checkpoint / "integrity.json").write_text(text)
    assert problems(checkpoint, deep=True) != []


def test_every_flipped_bit_of_the_small_files_is_noticed(checkpoint_of):
    """All of two files, and a part of the largest."""
    checkpoint = checkpoint_of("weights")
    record_save(checkpoint)
    rng = random.Random(2)
    for name in ("metadata.json", RECORD, ".metadata"):
        data = (checkpoint / name).read_bytes()
        everything = range(8 * len(data))
        for position in everything if len(data) < 100 else rng.sample(everything, 300):
            changed = bytearray(data)
            changed[position >> 3] ^= 1 << (position & 7)
            (checkpoint / name).write_bytes(changed)
            assert problems(checkpoint) != [], (name, divmod(position, 8))
        (checkpoint / name).write_bytes(data)
    assert set(json.loads((checkpoint / RECORD).read_text())) == {"files", "shards", "step"}
    assert problems(checkpoint) == []


def test_optimizers_with_other_moments_may_share_a_model(tmp_path):
    model = weights()
    state = with_state(model)
    first, second, *_ = (name for name in model if name.endswith("weight"))
    for moment in ("exp_avg", "exp_avg_sq"):
        del state[f"optimizer.state.{moment}.{first}"]
    state[f"optimizer.state.momentum_buffer.{first}"] = torch.ones_like(model[first]).float()
    assert problems(save(tmp_path / "mixed", state), deep=True) == []
    del state[f"optimizer.state.exp_avg_sq.{second}"]
    found = problems(save(tmp_path / "lacking", state), deep=True)
    assert found == [
        f"{second} has no exp_avg_sq in the optimizer state, and has other parts of it"
    ]


def test_bias_of_a_router_has_no_master_copy_in_the_buckets(tmp_path):
    model = weights()
    state = with_buckets(model)
    state["decoder.layers.mlp.router.expert_bias"] = torch.rand(2, 4)
    assert problems(save(tmp_path / "biased", state), deep=True) == []
