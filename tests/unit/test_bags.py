import pytest
import torch

from tst_megatron.model.bags import IGNORED, fold, ignore_after


@pytest.mark.parametrize("bag_size", [1, 2, 3, 4, 16])
def test_position_reads_its_bag_and_predicts_the_next(bag_size):
    num_positions = 5
    tokens = torch.randint(0, 1000, (3, (num_positions + 1) * bag_size))
    inputs, targets = fold(tokens, bag_size)
    assert inputs.shape == targets.shape == (3, num_positions, bag_size)
    for sequence in range(3):
        for position in range(num_positions):
            for slot in range(bag_size):
                first = position * bag_size + slot
                assert inputs[sequence, position, slot] == tokens[sequence, first]
                assert targets[sequence, position, slot] == tokens[sequence, first + bag_size]


@pytest.mark.parametrize("num_raw_tokens", [4, 9, 10])
def test_length_that_is_not_two_whole_bags_is_refused(num_raw_tokens):
    with pytest.raises(
        ValueError, match="do not make bags of 4: the length must be a multiple of 4"
    ):
        fold(torch.zeros(1, num_raw_tokens, dtype=torch.long), 4)


def test_masked_targets_are_the_same_raw_tokens_at_every_bag_size():
    end_of_document = 7
    tokens = torch.randint(0, 10, (4, 48))
    masked = {}
    for bag_size in (1, 2, 3, 4):
        _, targets = fold(tokens, bag_size)
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
