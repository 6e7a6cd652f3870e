"""What a run keeps of its evaluations, in several layouts: each sequence as it is alone."""

import json
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from layouts import EP2, OVERLAPS, TP2, VPP2

from tst_megatron.checkpoint.reader.weights import TrainedWeights, load_model
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.hf.trained_model import open_gpt
from tst_megatron.megatron.distributed_checkpoint.model import logits
from tst_megatron.recipe.parameters import EMBEDDINGS, OUTPUT_LAYER, count_parameters
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.report.evaluations import list_evaluations, read_blocks
from tst_megatron.training.report.facts import read_facts

STEPS, SWITCH, LENGTH = 4, 3, 32
NUM_SEQUENCES = 16
PIECE = 100
"""Characters of a document: one ends in most sequences."""

RUN = {
    "num_layers": 4,
    "train_iters": STEPS,
    "eval_interval": 2,
    "eval_iters": 2,
    "eod_mask_loss": True,
    "lr_wsd_decay_iters": 1,
    "lr_warmup_iters": 1,
}
LAYOUTS = {
    "one process": (1, {}),
    "EP2, other micro-batches": (2, {**EP2, **OVERLAPS, "eval-micro-batch-size": 1}),
    "TP2+SP": (2, TP2),
    "VPP2 on PP2 x EP2": (4, {**VPP2, **EP2}),
}


@pytest.fixture(scope="module")
def short_documents(text, tmp_path_factory):
    """Real text in documents so short that their ends are everywhere, a part of it for a test."""
    folder = tmp_path_factory.mktemp("short_documents")
    documents = [json.loads(line)["text"] for line in (text.parent / "corpus.jsonl").open()]
    pieces = {each[at : at + PIECE] for each in documents[:8] for at in range(0, 16000, PIECE)}
    lines = [json.dumps({"text": piece}) + "\n" for piece in sorted(pieces) if piece.strip()]
    (folder / "pieces.jsonl").write_text("".join(lines))
    prepare(
        [folder / "pieces.jsonl"],
        text.parent / "tokenizer.model",
        folder / "text",
        held_out_fraction=0.1,
        test_fraction=0.1,
        workers=1,
    )
    return folder / "text"


@pytest.fixture(scope="module")
def runs(short_documents, tmp_path_factory):
    """A run folder for each layout, beside its recipe."""
    folder = tmp_path_factory.mktemp("evaluations")
    tst = {"bag-size": 4, "superposition-steps": SWITCH}
    recipe = tiny.write_recipe(folder / "tst.yaml", short_documents, tst, **RUN)
    for name, (num_ranks, keys) in LAYOUTS.items():
        words = [f"{key}={str(value).lower()}" for key, value in keys.items()]
        arguments = ("train", str(recipe), *words, "--run-folder", str(folder / name))
        log = folder / f"{name}.log"
        tiny.wait(tiny.fork_ranks(*arguments, num_ranks=num_ranks, log=log), log)
    return recipe, {name: folder / name for name in LAYOUTS}


def held_out(text, split):
    """[n, L + 1] the held-out sequences: evenly spread over the file, as docs say."""
    tokens = np.fromfile(text / f"{split}.bin", dtype=np.uint16).astype(np.int64)
    num_places = (len(tokens) - 1) // LENGTH
    starts = [number * num_places // NUM_SEQUENCES * LENGTH for number in range(NUM_SEQUENCES)]
    return np.stack([tokens[start : start + LENGTH + 1] for start in starts])


def evaluated_alone(run, text, split):
    """[n, L] the loss of each position of each sequence, and whether it counts."""
    model = load_model(TrainedWeights(open_gpt(run))).model.eval()
    end = load_manifest(text).tokenizer.eod_id
    losses = []
    sequences = held_out(text, split)
    for sequence in torch.from_numpy(sequences):
        with torch.no_grad():
            of_sequence = logits(model, sequence[None, :-1])[0].float()
        losses.append(
            torch.nn.functional.cross_entropy(of_sequence, sequence[1:], reduction="none")
        )
    return torch.stack(losses).double().numpy(), sequences[:, :-1] != end


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_each_sequence_alone_in_the_order_of_the_text(
    runs, short_documents, layout, split
):
    run = runs[1][layout]
    losses, counts = evaluated_alone(run, short_documents, split)
    blocks = read_blocks(list_evaluations(run / "evaluations", split)[STEPS])
    assert blocks.num_positions.tolist() == counts.sum(axis=1).tolist()
    assert blocks.loss_sum == pytest.approx((losses * counts).sum(axis=1), rel=1e-5)
    # Sequences differ by far more, so the order is the text's.
    assert len({round(loss, 2) for loss in blocks.loss_sum}) == NUM_SEQUENCES
    assert 0 < counts.sum() < counts.size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_by_position_are_those_of_each_sequence_alone(runs, short_documents, layout):
    run = runs[1][layout]
    losses, counts = evaluated_alone(run, short_documents, "validation")
    blocks = read_blocks(list_evaluations(run / "evaluations")[STEPS])
    assert blocks.by_position.edges.tolist() == list(range(0, LENGTH + 1, 4))
    of_parts = (losses * counts).reshape(NUM_SEQUENCES, 8, 4).sum(axis=2)
    assert blocks.by_position.loss_sum == pytest.approx(of_parts, rel=1e-5)
    counted = counts.reshape(NUM_SEQUENCES, 8, 4).sum(axis=2)
    assert blocks.by_position.num_positions.tolist() == counted.tolist()


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_by_frequency_are_those_of_the_targets_of_all_sequences(
    runs, short_documents, layout, split
):
    run = runs[1][layout]
    losses, counts = evaluated_alone(run, short_documents, split)
    targets = held_out(short_documents, split)[:, 1:]
    occurs = Counter(targets.ravel().tolist())
    of_part = np.array(
        [[occurs[token].bit_length() - 1 for token in row] for row in targets.tolist()]
    )
    num_parts = of_part.max() + 1
    blocks = read_blocks(list_evaluations(run / "evaluations", split)[STEPS])
    assert blocks.by_frequency.edges.tolist() == [2**part for part in range(num_parts + 1)]
    for part in range(num_parts):
        inside = counts & (of_part == part)
        assert blocks.by_frequency.num_positions[:, part].tolist() == inside.sum(axis=1).tolist()
        expected = (losses * inside).sum(axis=1)
        assert blocks.by_frequency.loss_sum[:, part] == pytest.approx(expected, rel=1e-5)
    assert num_parts > 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mean_is_the_loss_that_was_logged_in_both_phases(runs, layout):
    run = runs[1][layout]
    for event, steps in (("validation", [2, STEPS]), ("test", [STEPS])):
        kept = list_evaluations(run / "evaluations", event)
        logged = {row["step"]: row[f"lm loss {event}"] for row in tiny.metrics(run, event)}
        assert list(kept) == list(logged) == steps
        for step, path in kept.items():
            assert read_blocks(path).loss_mean == pytest.approx(logged[step], rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_else_is_in_the_folder(runs, layout):
    found = sorted(path.name for path in (runs[1][layout] / "evaluations").iterdir())
    assert found == ["test-0000004.npz", "validation-0000002.npz", "validation-0000004.npz"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_tell_the_most_memory_until_then(runs, layout):
    peaks = [row["peak memory bytes"] for row in tiny.metrics(runs[1][layout])]
    assert len(peaks) == STEPS and sorted(peaks) == peaks
    # This process has imported the same, and trains nothing.
    assert 1e8 < peaks[0] < 1e11


@pytest.mark.parametrize("layout", LAYOUTS)
def test_facts_say_what_a_comparison_needs(runs, short_documents, layout):
    recipe, folders = runs
    facts = read_facts(folders[layout] / "facts.json")
    manifest = load_manifest(short_documents)
    expected = count_parameters(load_recipe(recipe))
    assert facts["parameters"] == {
        "total": expected.total,
        "active": expected.active(),
        "embedding": expected.active() - expected.active(EMBEDDINGS, OUTPUT_LAYER),
    }
    assert facts["held-out"] == {
        name: {
            "sha256": [split.bin_sha256],
            "weights": [1.0],
            "sequences": NUM_SEQUENCES,
            "latent positions": LENGTH,
            "eod-mask-loss": True,
        }
        for name, split in (("validation", manifest.validation), ("test", manifest.test))
    }
    assert (facts["world size"], facts["device"]) == (LAYOUTS[layout][0], "cpu")
    assert facts["stream"]["phases"] == [[4, SWITCH], [1, STEPS - SWITCH]]
    (row, *_) = tiny.metrics(folders[layout])
    performed = row["TFLOP/s per device"] * row["step seconds"] * facts["world size"] * 1e12
    assert facts["peak TFLOP/s per device"] is None and "MFU" not in row, (
        "the CPU has no known peak"
    )
    assert facts["FLOPs per step"] == pytest.approx(performed, rel=1e-9)
