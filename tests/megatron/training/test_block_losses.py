"""The collector of held-out losses, with ranks that the tests play, and what is recorded of it."""

import errno
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from tst_megatron.schedule import Schedule, resolve_phases
from tst_megatron.training.report import block_losses, recorder
from tst_megatron.training.report.block_losses import HeldOutLosses
from tst_megatron.training.report.evaluations import list_evaluations, read_blocks
from tst_megatron.training.report.recorder import Recorder

LENGTH, SEQUENCES, VOCABULARY = 16, 12, 40


class Positions:
    """Held-out sequences from a generator, in which low ids are frequent."""

    num_samples = SEQUENCES
    sequences = np.random.default_rng(5).geometric(0.15, (SEQUENCES, LENGTH + 1)) % VOCABULARY

    def tokens(self, place):
        return self.sequences[place]


class Job:
    """A job of D data-parallel and C context-parallel ranks, one after the other."""

    def __init__(self, monkeypatch, *, data=1, context=1, micro_batch=1):
        self.data, self.context, self.micro_batch = data, context, micro_batch
        self.rank, self.sums, self.counts = 0, [], []
        self.is_last_stage = True
        args = type(
            "Args", (), {"eval_micro_batch_size": micro_batch, "padded_vocab_size": VOCABULARY}
        )
        monkeypatch.setattr(block_losses.names, "get_args", lambda: args)
        monkeypatch.setattr(block_losses.ranks, "data_parallel_place", lambda: (self.rank, data))
        monkeypatch.setattr(
            block_losses.ranks, "is_last_pipeline_stage", lambda: self.is_last_stage
        )
        monkeypatch.setattr(block_losses.ranks, "current_device", lambda: "cpu")
        monkeypatch.setattr(block_losses.ranks, "sum_over_data_parallel_ranks", self.sum)

    def sum(self, tensor, *, with_context_parallel):
        """What the other ranks hold is added; of tokens, every rank is told all of them."""
        if not with_context_parallel:
            tensor.copy_(
                torch.from_numpy(
                    np.bincount(Positions.sequences[:, 1:].ravel(), minlength=VOCABULARY)
                )
            )
            return tensor
        self.sums.append(tensor.clone())
        return tensor.copy_(torch.stack(self.sums).sum(dim=0))

    def evaluate(self, losses, mask, *, num_micro_batches=None):
        """Let every rank evaluate in turn; what the last one has then is the whole."""
        for rank in range(self.data):
            self.rank = rank
            for part in range(self.context):
                held_out = HeldOutLosses(lambda event: Positions(), num_latent_positions=LENGTH)
                held_out.begin("validation")
                for batch in list(self.batches())[:num_micro_batches]:
                    positions = torch.tensor(self.positions(part)).expand(self.micro_batch, -1)
                    targets = torch.tensor(Positions.sequences[batch, 1:])
                    wholes = targets, mask[batch], losses[batch]
                    held_out.add(positions, *(each.gather(1, positions) for each in wholes))
                held_out.end()
        return held_out

    def batches(self):
        """The micro-batches of the rank, as Megatron's own sampler deals them."""
        from tst_megatron.megatron.names import MegatronPretrainingSampler

        return MegatronPretrainingSampler(
            total_samples=SEQUENCES,
            consumed_samples=0,
            micro_batch_size=self.micro_batch,
            data_parallel_rank=self.rank,
            data_parallel_size=self.data,
        )

    def positions(self, part):
        """Of 2C runs, a context-parallel rank has its own and the one as far from the end."""
        if self.context == 1:
            return list(range(LENGTH))
        runs = np.arange(LENGTH).reshape(2 * self.context, -1)
        return [*runs[part].tolist(), *runs[2 * self.context - 1 - part].tolist()]


@pytest.fixture
def losses():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(SEQUENCES, LENGTH, generator=generator) * 9


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(4)
    return (torch.rand(SEQUENCES, LENGTH, generator=generator) < 0.8).float()


SIZES = [(1, 1, 1), (1, 1, 3), (2, 1, 3), (3, 1, 2), (1, 2, 2), (2, 2, 1), (3, 4, 4)]


@pytest.mark.parametrize(("data", "context", "micro_batch"), SIZES)
def test_sums_are_those_of_whole_sequences_in_order(
    monkeypatch, losses, mask, data, context, micro_batch
):
    job = Job(monkeypatch, data=data, context=context, micro_batch=micro_batch)
    blocks = job.evaluate(losses, mask).result()
    counted = (losses * mask).double().numpy()
    assert blocks.loss_sum == pytest.approx(counted.sum(axis=1), rel=1e-12)
    assert blocks.num_positions.tolist() == mask.sum(dim=1).int().tolist()
    of_parts = counted.reshape(SEQUENCES, 8, 2).sum(axis=2)
    assert blocks.by_position.loss_sum == pytest.approx(of_parts, rel=1e-12)
    targets = Positions.sequences[:, 1:]
    occurs = np.bincount(targets.ravel())
    for part, least in enumerate(blocks.by_frequency.edges[:-1]):
        inside = (occurs[targets] >= least) & (occurs[targets] < 2 * least)
        expected = (counted * inside).sum(axis=1)
        assert blocks.by_frequency.loss_sum[:, part] == pytest.approx(expected, rel=1e-12)
    assert blocks.by_frequency.num_positions.sum(axis=1).tolist() == blocks.num_positions.tolist()


def test_a_cut_off_evaluation_has_no_losses_and_the_next_one_has(monkeypatch, losses, mask):
    job = Job(monkeypatch, micro_batch=3)
    assert job.evaluate(losses, mask, num_micro_batches=3).result() is None
    assert not job.sums, "ranks that stop must not wait for each other"
    assert job.evaluate(losses, mask).result() is not None


def test_a_second_evaluation_adds_nothing_to_the_first(monkeypatch, losses, mask):
    job = Job(monkeypatch, micro_batch=SEQUENCES)
    held_out = HeldOutLosses(lambda event: Positions(), num_latent_positions=LENGTH)
    positions = torch.arange(LENGTH).expand(SEQUENCES, -1)
    targets = torch.tensor(Positions.sequences[:, 1:])
    for factor in (1, 2):
        job.sums.clear()
        held_out.begin("validation")
        assert held_out.result() is None
        held_out.add(positions, targets, mask, losses * factor)
        held_out.end()
        expected = (losses * factor * mask).double().sum(dim=1).numpy()
        assert held_out.result().loss_sum == pytest.approx(expected, rel=1e-12)


def test_what_a_cut_off_evaluation_has_left_is_forgotten(monkeypatch, losses, mask):
    Job(monkeypatch, micro_batch=SEQUENCES)
    held_out = HeldOutLosses(lambda event: Positions(), num_latent_positions=LENGTH)
    positions = torch.arange(LENGTH).expand(SEQUENCES, -1)
    targets = torch.tensor(Positions.sequences[:, 1:])
    first = slice(0, 5)
    held_out.begin("validation")
    held_out.add(positions[first], targets[first], mask[first], losses[first])
    held_out.end()
    held_out.begin("validation")
    held_out.add(positions, targets, mask, losses)
    held_out.end()
    assert held_out.result().loss_sum[0] == pytest.approx(float((losses[0] * mask[0]).sum()))


def test_other_pipeline_stages_open_no_text_and_have_no_losses(monkeypatch):
    job = Job(monkeypatch)
    job.is_last_stage = False
    opened = []
    held_out = HeldOutLosses(opened.append, num_latent_positions=LENGTH)
    held_out.begin("validation")
    held_out.end()
    assert held_out.result() is None and not opened and not job.sums


# --- the recorder ---------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path, monkeypatch, losses, mask):
    """A recorder whose evaluation is complete, and what it has said."""
    schedule = Schedule(
        phases=resolve_phases([(1, 1.0)], num_steps=9), num_latent_positions=8, global_batch_size=2
    )
    held_out = Job(monkeypatch, micro_batch=2).evaluate(losses, mask)
    said = io.StringIO()
    made = Recorder(
        tmp_path / "metrics.jsonl",
        schedule,
        console=Console(file=said, width=500),
        device="cpu",
        held_out=held_out,
    )
    made.said = said
    return made


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["event"], row["step"]) for row in map(json.loads, lines)]


def test_each_evaluation_has_a_file_which_is_there_before_its_row(record, tmp_path, monkeypatch):
    record.on_load(0)
    write = record._write
    seen = []
    monkeypatch.setattr(
        record, "_write", lambda row: (seen.append(sorted(evaluations(tmp_path))), write(row))
    )
    record.on_evaluation(2, {"lm loss validation": 3.0})
    record.on_evaluation(4, {"lm loss test": 3.0})
    assert seen == [
        ["validation-0000002.npz"],
        ["test-0000004.npz", "validation-0000002.npz"],
    ]
    assert rows(tmp_path) == [("validation", 2), ("test", 4)]


def evaluations(folder):
    return [path.name for path in (folder / "evaluations").iterdir()]


def test_the_evaluation_that_megatron_repeats_after_the_last_step_is_kept_once(
    record, tmp_path, monkeypatch
):
    record.on_load(0)
    record.on_evaluation(9, {"lm loss validation": 3.0})
    monkeypatch.setattr(recorder, "write_blocks", None)
    record.on_evaluation(9, {"lm loss validation": 3.0})
    assert rows(tmp_path) == [("validation", 9)]


def test_files_of_later_steps_are_gone_when_a_run_resumes(record, tmp_path):
    record.on_load(0)
    for step in (2, 4, 6):
        record.on_evaluation(step, {"lm loss validation": 3.0})
    record.on_evaluation(6, {"lm loss test": 3.0})
    record.on_load(4)
    assert sorted(evaluations(tmp_path)) == ["validation-0000002.npz", "validation-0000004.npz"]
    assert rows(tmp_path) == [("validation", 2), ("validation", 4)]
    read_blocks(list_evaluations(tmp_path / "evaluations")[4])


def test_a_full_disk_is_said_once_and_ends_nothing(record, tmp_path, monkeypatch):
    def full(path, blocks):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(recorder, "write_blocks", full)
    record.on_load(0)
    record.on_evaluation(2, {"lm loss validation": 3.0})
    record.on_evaluation(4, {"lm loss validation": 3.0})
    assert rows(tmp_path) == [("validation", 2), ("validation", 4)]
    assert record.said.getvalue().count("No space left on device") == 1
    assert record.said.getvalue().count("single held-out sequences are not kept") == 1


def test_a_file_in_the_place_of_the_folder_ends_nothing(record, tmp_path):
    (tmp_path / "evaluations").write_text("in the way")
    record.on_load(0)
    record.on_evaluation(2, {"lm loss validation": 3.0})
    assert rows(tmp_path) == [("validation", 2)]
    assert "are not kept" in record.said.getvalue()
    assert (tmp_path / "evaluations").read_text() == "in the way"


def test_files_that_cannot_be_deleted_are_told_of(record, tmp_path, monkeypatch):
    def refused(folder, step):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(recorder, "drop_evaluations_after", refused)
    record.on_load(4)
    assert "evaluations of later steps were not deleted: " in record.said.getvalue()
