"""Known damage is found by the probes that were made for it, and by no unrelated one."""

import copy
from pathlib import Path

import pytest
from hugging_face_tokenizers import build_hugging_face
from reading_network import (
    ReadingNetwork,
    with_blur,
    with_blur_in_bags,
    with_last_tokens_hidden,
    with_noise,
    with_temperature,
)

from tst_megatron.audit.compared import answers_of
from tst_megatron.audit.margins import parse_margins
from tst_megatron.audit.models.open_models import Model, Subject
from tst_megatron.audit.models.scores import best_inverse_temperature, score
from tst_megatron.audit.probes import forms, pairs
from tst_megatron.audit.probes.catalogue import make_catalogue
from tst_megatron.audit.probes.encoding import FILLER, Encoder
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face

BAGS = {"first past an edge", "slot 2", "slot 3", "slot 4"}
CALIBRATION = {
    *("ECE", "Brier score", "entropy against loss", "lead where wrong"),
    "confidence without answer",
}
RECALL = {"copying 8", "copying 24", "induction near", "induction middle", "induction far"}
SLICES = {"numbers", "names", "code", "identifiers", "rare words", "rare tokens"}
ORDER = {"digit order, inside", "digit order, across"}


@pytest.fixture(scope="module")
def audited(training_texts, held_out_texts, tmp_path_factory):
    """Verdicts of each damage against the network as it was."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = " ".join([FILLER, *pairs.NAMES, *pairs.THINGS, *pairs.COLOURS, *forms.SIZES])
    build_hugging_face(folder, [*training_texts[:20], words * 300], single=None, vocab_size=600)
    tokenizer = load_hugging_face(folder)
    encoder = Encoder(tokenizer, bag_size=4, num_positions=96)
    catalogue = make_catalogue(held_out_texts, encoder, num_items=60, max_tokens=9_000, seed=1)
    documents = tokenizer.encode([*training_texts[:20], words])
    network = ReadingNetwork(documents, tokenizer.facts.vocab_size)
    # Calibrated, as a trained model is.
    network.inverse_temperature = best_inverse_temperature(
        model_of(network), catalogue.suites[0], batch_size=32
    )
    whole = scores_of(network, catalogue)

    def verdicts(damage=None):
        damaged = copy.copy(network)
        if damage is not None:
            damage(damaged)
        ours = scores_of(damaged, catalogue) if damage else whole
        return answers_of("it", ours, [whole], catalogue.probes, parse_margins([]), seed=1)

    return verdicts


def model_of(network):
    subject = Subject(
        folder=Path("made"), name="made", fingerprint="", num_positions=96, bag_size=4
    )
    return Model(subject=subject, network=network, device="cpu", has_plain_head=False)


def scores_of(network, catalogue):
    model = model_of(network)
    inverse = best_inverse_temperature(model, catalogue.suites[0], batch_size=32)
    return {
        suite.name: score(model, suite, inverse_temperature=inverse, batch_size=32)
        for suite in catalogue.suites
    }


def found(answers, word="worse"):
    return {each.probe for each in answers if each.verdict == word}


def test_network_can_do_what_is_asked_and_differs_nowhere_from_itself(audited):
    answers = audited()
    assert {each.verdict for each in answers} <= {"not worse", "cannot tell"}
    assert {each.difference.value for each in answers} == {0}
    assert found(answers, "not worse") >= {*BAGS, *RECALL, *ORDER, "ECE", "recall", "numbers"}


def test_temperature_is_found_by_calibration_and_by_nothing_else(audited):
    answers = audited(with_temperature)
    assert found(answers) >= {"all text", "ECE", "entropy against loss"}
    # A flatter model is less sure where it is wrong, too.
    assert found(answers) | found(answers, "better") <= {"all text", *CALIBRATION}


def test_noise_is_found_and_has_no_phase(audited):
    answers = audited(with_noise)
    assert found(answers) >= {"all text"}
    assert not found(answers) & BAGS


def test_blur_is_found_by_order_and_has_no_phase(audited):
    worse = found(audited(with_blur))
    assert worse >= {"all text", "neighbours, inside", "one digit", *ORDER, *RECALL}
    assert worse >= {"key and value, inside", "letter order, inside", "window, one bag"}
    assert not worse & (BAGS | SLICES)


def test_blur_inside_bags_has_a_phase(audited):
    worse = found(audited(with_blur_in_bags))
    assert worse & BAGS and worse >= {"all text"}


def test_hidden_last_tokens_are_found_by_recall_and_have_no_phase(audited):
    worse = found(audited(with_last_tokens_hidden))
    assert worse >= RECALL
    assert not worse & BAGS
