import pytest
import torch

from tst_megatron.model.bags import IGNORED, fold, ignore_after


@pytest.mark.parametrize("bag_size", [1, 2, 3, 4, 16])
def test_position_reads_its_bag_and_predicts_the_next(bag_size):
    num_positions = 5
    tokens = torch.randint(0, 1000, (3, (num_positions + 1) * bag_size))
    inputs, targets = fold(tokens, num_inputs=bag_size, num_targets=bag_size)
    assert inputs.shape == targets.shape == (3, num_positions, bag_size)
    for sequence in range(3):
        for position in range(num_positions):
            for slot in range(bag_size):
                first = position * bag_size + slot
                assert inputs[sequence, position, slot] == tokens[sequence, first]
                assert targets[sequence, position, slot] == tokens[sequence, first + bag_size]


@pytest.mark.parametrize(("num_inputs", "num_targets"), [(4, 1), (1, 4), (3, 2), (1, 1)])
def test_bags_on_one_side_only(num_inputs, num_targets):
    """Input superposition only predicts one token; output superposition only reads one."""
    num_positions = 5
    tokens = torch.arange(2 * (num_positions * num_inputs + num_targets)).view(2, -1)
    inputs, targets = fold(tokens, num_inputs=num_inputs, num_targets=num_targets)
    for sequence in range(2):
        for position in range(num_positions):
            first, after = position * num_inputs, (position + 1) * num_inputs
            read = tokens[sequence, first:after].tolist()
            assert inputs[sequence, position].tolist() == read
            predicted = tokens[sequence, after : after + num_targets].tolist()
            assert targets[sequence, position].tolist() == predicted


@pytest.mark.parametrize(
    ("num_raw_tokens", "num_targets"), [(4, 4), (9, 4), (10, 4), (12, 1), (1, 1)]
)
def test_length_that_is_no_whole_bags_and_look_ahead_is_refused(num_raw_tokens, num_targets):
    with pytest.raises(
        ValueError, match=f"do not make bags of 4 with {num_targets} of look-ahead: the length"
    ):
        tokens = torch.zeros(1, num_raw_tokens, dtype=torch.long)
        fold(tokens, num_inputs=4, num_targets=num_targets)


@pytest.mark.parametrize(("num_inputs", "num_targets"), [(4, 1), (1, 4)])
def test_masked_targets_follow_the_token_also_with_bags_on_one_side(num_inputs, num_targets):
    tokens = torch.randint(0, 3, (4, 8 * num_inputs + num_targets))
    _, targets = fold(tokens, num_inputs=num_inputs, num_targets=num_targets)
    ignored = ignore_after(tokens, targets, 2) == IGNORED
    for position in range(8):
        for slot in range(num_targets):
            place = (position + 1) * num_inputs + slot
            assert (ignored[:, position, slot] == (tokens[:, place - 1] == 2)).all()


def test_masked_targets_are_the_same_raw_tokens_at_every_bag_size():
    end_of_document = 7
    tokens = torch.randint(0, 10, (4, 48))
    masked = {}
    for bag_size in (1, 2, 3, 4):
        _, targets = fold(tokens, num_inputs=bag_size, num_targets=bag_size)
        ignored = ignore_after(tokens, targets, end_of_document) == IGNORED
        # The raw place of each target: it follows the inputs by one bag.
        place = torch.arange(bag_size, tokens.shape[1]).view(-1, bag_size)
        masked[bag_size] = {
            (sequence, int(place[position, slot]))
            for sequence, position, slot in ignored.nonzero().tolist()
        }
    expected = {
        (sequence, place)
        for sequence in range(4)
        for place in range(1, 48)
        if tokens[sequence, place - 1] == end_of_document
    }
    for bag_size, places in masked.items():
        assert places == {(sequence, place) for sequence, place in expected if place >= bag_size}
