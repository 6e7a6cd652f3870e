"""The items of the audit are what they claim: what differs, where it lies, what counts."""

import random

import numpy as np
import pytest
from hugging_face_tokenizers import build_hugging_face

from tst_megatron.audit.items import NO_FOIL
from tst_megatron.audit.probes import forms, natural, order, pairs, random_tokens
from tst_megatron.audit.probes.catalogue import make_catalogue
from tst_megatron.audit.probes.categories import PATTERNS, characters_of, word_counts
from tst_megatron.audit.probes.choices import draw_items
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face

BAG_SIZE = 4
TASKS = {task.name: task for task in (*pairs.TASKS, *forms.TASKS)}


@pytest.fixture(scope="module", params=["with BOS", "without BOS"])
def tokenizer(request, training_texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    more = {} if request.param == "with BOS" else {"single": None}
    words = " ".join([*pairs.NAMES, *pairs.THINGS, *pairs.COLOURS]) * 300
    build_hugging_face(folder, [*training_texts[:20], words], vocab_size=700, **more)
    return load_hugging_face(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer, bag_size=BAG_SIZE, num_positions=128)


def items(task, encoder, placement=None, number=60):
    found = draw_items(task.draw, encoder, random.Random(0), placement, number)
    assert found
    return found


def texts(passage, tokenizer, encoder):
    """What is read before the scored token, and the token and its foil as text."""
    (at,), (foil,) = passage.positions, passage.foils
    ids = passage.ids.tolist()
    before = ids[len(encoder.before) : at]
    return tuple(tokenizer.decode([*before, *more]) for more in ([], [ids[at]], [int(foil)]))


@pytest.mark.parametrize("name", TASKS)
def test_item_has_one_scored_token_at_its_end_and_another_token_as_foil(name, encoder):
    task = TASKS[name]
    for passage in items(task, encoder, "inside" if task.is_placed else None):
        assert passage.positions.tolist() == [len(passage.ids) - 1]
        assert passage.foils[0] not in (NO_FOIL, passage.ids[-1])
        assert len(passage.ids) <= encoder.num_positions
        assert passage.ids[: len(encoder.before)].tolist() == encoder.before


@pytest.mark.parametrize("placement", ["inside", "across"])
def test_swapped_digits_lie_where_the_probe_says(placement, tokenizer, encoder):
    for passage in items(TASKS["digit order"], encoder, placement):
        before, right, wrong = texts(passage, tokenizer, encoder)
        # The value as it stands at first; the second mention breaks off before the swap.
        value = before.partition(" is ")[2][:5]
        known = before.rpartition(" is")[2].strip()
        assert value.startswith(known)
        at = len(known)
        end = len(before.rstrip())
        assert right[end:].strip() == value[at:][: len(right[end:].strip())]
        if len(right[end:].strip()) == 1:
            assert wrong[end:].strip() == value[at + 1]
        # Single digits are tokens here, so places in the text are places of tokens.
        ids = passage.ids.tolist()
        tokens = [tokenizer.decode([each]) for each in ids]
        starts = [n for n in range(len(ids) - 5) if "".join(tokens[n : n + 5]).strip() == value]
        if not starts:
            continue
        first = starts[0] + at
        assert (first // BAG_SIZE == (first + 1) // BAG_SIZE) == (placement == "inside")


@pytest.mark.parametrize("placement", ["inside", "across"])
def test_pair_of_induction_lies_where_the_probe_says(placement, encoder):
    (task,) = [each for each in random_tokens.induction_tasks(encoder) if each.is_placed]
    for passage in items(task, encoder, placement):
        ids = passage.ids.tolist()
        first, second = ids[-2:]
        distance = random_tokens.PLACED_DISTANCE
        at = len(ids) - 2 - distance
        assert ids[at : at + 2] == [first, second]
        assert (at // BAG_SIZE == (at + 1) // BAG_SIZE) == (placement == "inside")
        assert passage.foils[0] in ids and passage.foils[0] not in (first, second)


@pytest.mark.parametrize("distance", random_tokens.DISTANCES.values())
def test_induction_asks_at_its_distance(distance, encoder):
    (task,) = [
        each
        for each in random_tokens.induction_tasks(encoder)
        if each.aim == f"what followed a random token {distance} tokens before"
    ]
    for passage in items(task, encoder):
        ids = passage.ids.tolist()
        assert ids[-2 - distance : len(ids) - distance] == ids[-2:]


def test_copies_are_two_and_their_first_tokens_do_not_count(encoder):
    (suite,) = random_tokens.copying(encoder, num_items=40, seed=1).suites
    for passage in suite.passages:
        ids = passage.ids[len(encoder.before) :]
        half = len(ids) // 2
        assert np.array_equal(ids[:half], ids[half:])
        places = passage.positions - len(encoder.before)
        assert places.tolist() == [*range(1, half), *range(half + 1, 2 * half)]


def test_key_is_asked_and_the_foil_is_the_value_of_another(tokenizer, encoder):
    for passage in items(TASKS["key and value"], encoder, "across"):
        before, right, wrong = texts(passage, tokenizer, encoder)
        entries = dict(
            each.split(" ")
            for each in before.partition(".")[0].split(". ")[-1].split(", ")
            if each.count(" ") == 1
        )
        values = [text.removeprefix(before).strip() for text in (right, wrong)]
        asked = before.rpartition(". ")[2].split(" ")[0]
        if asked in entries and values[0]:
            assert entries[asked] == values[0]
            assert values[1] in entries.values() and values[1] != values[0]


def test_question_without_answer_has_none(tokenizer, encoder):
    generator = random.Random(0)
    for _ in range(20):
        passage = forms.no_answer(encoder, generator)
        text = tokenizer.decode(passage.ids[len(encoder.before) :].tolist())
        known, _, question = text.partition(". The number of ")
        assert question.partition(" is")[0] not in known


def test_same_seed_gives_the_same_items_and_another_seed_others(encoder, held_out_texts):
    def made(seed):
        catalogue = make_catalogue(
            held_out_texts, encoder, num_items=10, max_tokens=3000, seed=seed
        )
        return {suite.name: suite.fingerprint() for suite in catalogue.suites}

    first, again, other = made(1), made(1), made(2)
    assert first == again
    assert first["choices"] != other["choices"] and first["natural"] == other["natural"]


def test_probes_have_different_names_and_clusters_that_count(encoder, held_out_texts):
    catalogue = make_catalogue(held_out_texts, encoder, num_items=10, max_tokens=6000, seed=1)
    names = [probe.name for probe in catalogue.probes]
    assert len(set(names)) == len(names) > 40
    known = {suite.name for suite in catalogue.suites}
    assert {probe.suite for probe in catalogue.probes} == known
    for probe in catalogue.probes:
        assert set(probe.rests_on) <= set(names)
        assert probe.num_clusters >= 8 and probe.num_tokens > 0


def test_categories_are_found_in_a_text():
    text = (
        "The meeting of 2021-03-07 with Anna Berg cost 1,250 euros. He met Tom on 4 May.\n"
        "    total_sum = add_all(rowCount, MAX_ROWS)\n"
    )
    found = {
        name: ["".join(part) for part in runs(text, flags)]
        for name, flags in characters_of(text, word_counts([text])).items()
    }
    assert found["dates"] == ["2021-03-07", "4 May"]
    assert "1,250" in found["numbers"]
    assert found["names"] == ["Anna Berg", "Tom", "May"] or found["names"] == ["Anna Berg", "Tom"]
    assert {"total_sum", "add_all", "rowCount", "MAX_ROWS"} <= set(found["identifiers"])
    assert any("total_sum" in line for line in found["code"])
    assert not any("meeting" in line for line in found["code"])
    assert set(found) == {*PATTERNS, "rare words"}


def runs(text, flags):
    """Runs of characters that are flagged."""
    found, current = [], ""
    for character, flag in zip(text, flags, strict=True):
        if flag:
            current += character
        elif current:
            found.append(current)
            current = ""
    return [*found, current] if current else found


def test_recall_is_the_last_token_of_a_pair_that_stood_before(encoder, held_out_texts):
    made, labels = natural.natural(held_out_texts, encoder, max_tokens=6000, seed=1)
    at = 0
    for passage in made.suites[0].passages:
        ids = passage.ids.tolist()
        for position in passage.positions.tolist():
            pairs_before = list(zip(ids[: position - 1], ids[1:position], strict=True))
            is_before = (ids[position - 1], ids[position]) in pairs_before
            assert labels.is_recall[at] <= is_before
            assert labels.place[at] == position and labels.token[at] == ids[position]
            at += 1
    assert 0 < labels.is_recall.mean() < 0.5


def test_windows_are_permuted_and_all_else_is_the_same(encoder, held_out_texts):
    made, labels = natural.natural(held_out_texts, encoder, max_tokens=6000, seed=1)
    found = order.order(made.suites[0], labels, bag_size=BAG_SIZE, num_items=60, seed=1)
    (suite,) = found.suites
    for plain, mixed in zip(suite.passages[::2], suite.passages[1::2], strict=True):
        end = len(plain.ids) - order.CONTINUATION
        window = slice(end - BAG_SIZE, end)
        assert sorted(plain.ids[window]) == sorted(mixed.ids[window])
        assert not np.array_equal(plain.ids[window], mixed.ids[window])
        rest = np.r_[0 : end - BAG_SIZE, end : len(plain.ids)]
        assert np.array_equal(plain.ids[rest], mixed.ids[rest])
        assert plain.positions.tolist() == [end, end + 1]
    phases = [(len(each.ids) - order.CONTINUATION) % BAG_SIZE for each in suite.passages]
    assert set(phases) == {0, BAG_SIZE // 2}


def test_foil_of_natural_text_is_the_token_after(encoder, held_out_texts):
    made, _ = natural.natural(held_out_texts, encoder, max_tokens=3000, seed=1)
    for passage in made.suites[0].passages:
        ids = passage.ids.tolist()
        for position, foil in zip(passage.positions.tolist(), passage.foils.tolist(), strict=True):
            after = ids[position + 1] if position + 1 < len(ids) else NO_FOIL
            assert foil == (NO_FOIL if after == ids[position] else after)


def test_text_that_is_too_short_says_what_is_needed(encoder):
    with pytest.raises(ValueError, match=r"--text: has 1 passages .* and 8 are needed"):
        natural.natural(["A text. " * 20], encoder, max_tokens=3000, seed=1)


def test_probe_that_cannot_be_placed_is_left_out_with_a_reason(tokenizer, held_out_texts):
    encoder = Encoder(tokenizer, bag_size=2, num_positions=64)
    found = make_catalogue([], encoder, num_items=10, max_tokens=1, seed=1)
    reasons = {left.name: left.reason for left in found.left_out}
    assert "never two tokens of one bag of 2" in reasons["date order, inside"]
    assert reasons["copying 96"] == "two copies do not fit into 64 positions"
    assert "--text" in reasons["all probes on natural text"]
