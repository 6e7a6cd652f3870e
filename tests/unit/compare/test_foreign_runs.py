"""Runs of other tools: TensorBoard folders of Megatron-LM, CSV files of trackers."""

import csv
import math
import struct

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tst_megatron.compare.runs.open_runs import open_runs
from tst_megatron.recipe.recipe import RecipeError


def write_events(folder, *events):
    """Write (tag, step, value) events; a value that is a text becomes a text."""
    writer = EventFileWriter(str(folder))
    for tag, step, value in events:
        event = Event(step=step, wall_time=1.0 + step)
        entry = event.summary.value.add(tag=tag)
        if isinstance(value, str):
            entry.tag = f"{tag}/text_summary"
            entry.metadata.plugin_data.plugin_name = "text"
            entry.tensor.dtype = 7
            entry.tensor.string_val.append(value.encode())
        else:
            entry.simple_value = value
        writer.add_event(event)
    writer.close()
    return folder


def megatron(last=1000, every=100):
    """Events as Megatron-LM writes them, the neighbours of the wanted ones too."""
    arguments = {
        "seq_length": "128",
        "global_batch_size": "16",
        "train_iters": "1000",
        "world_size": "8",
        "seed": "7",
        "lr": "0.004",
        "eval_iters": "4",
    }
    events = [(name, 0, text) for name, text in arguments.items()]
    for step in range(1, last + 1):
        events += [
            ("lm loss", step, 2.0 + 1 / step),
            ("lm loss vs samples", 16 * step, 9.0),
            ("learning-rate", step, 0.004),
            ("iteration-time", step, 0.5),
            ("throughput", step, 400.0),
        ]
        if step % every == 0:
            events += [
                ("lm loss validation", step, 3.0 - step / 1000),
                ("lm loss validation ppl", step, 20.0),
                ("lm loss validation vs samples", 16 * step, 8.0),
            ]
    return events


def only(path):
    (run,), notes = open_runs([path])
    return run, notes


def problem(path):
    with pytest.raises(RecipeError) as error:
        open_runs([path])
    return str(error.value)


# --- TensorBoard ---------------------------------------------------------------------------------


def test_events_of_stock_megatron_are_a_run(tmp_path):
    run, notes = only(write_events(tmp_path / "stock", *megatron()))
    assert (run.name, run.kind, run.seed) == ("stock", "TensorBoard", 7) and notes == []
    assert (run.num_steps, run.last_step, run.phases) == (1000, 1000, ((1, 1000),))
    assert run.validation.steps.tolist() == list(range(100, 1001, 100))
    assert run.validation.values == pytest.approx([3.0 - s / 1000 for s in range(100, 1001, 100)])
    assert len(run.training["lm loss"].steps) == 1000
    assert run.raw_tokens[-1] == 1000 * 16 * 128
    assert run.hours[-1] == pytest.approx(500 / 3600)
    assert run.flops[-1] == pytest.approx(1000 * 400e12 * 0.5 * 8)
    assert run.numbers["TFLOP/s per device"] == 400
    assert run.facts["recipe"]["lr"] == "0.004"


def test_restart_replaces_later_steps_of_the_file_before(tmp_path, monkeypatch):
    folder = tmp_path / "stock"
    write_events(folder, ("lm loss validation", 100, 3.0), ("lm loss validation", 200, 9.0))
    first = next(folder.iterdir())
    first.rename(folder / "events.out.tfevents.1000000000.host.1.0")
    write_events(folder, ("lm loss validation", 150, 2.5), ("lm loss validation", 175, 2.4))
    run, _ = only(folder)
    assert run.validation.steps.tolist() == [100, 150, 175]
    assert run.validation.values.tolist() == pytest.approx([3.0, 2.5, 2.4])


def test_torn_record_ends_a_file_that_is_written_at_the_moment(tmp_path):
    folder = write_events(tmp_path / "stock", *megatron(last=200))
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes() + struct.pack("<Q", 1000) + b"torn")
    run, _ = only(folder)
    assert run.last_step == 200 and run.num_steps == 1000


def test_folder_without_arguments_says_so(tmp_path):
    run, notes = only(write_events(tmp_path / "stock", ("lm loss validation", 100, 3.0)))
    assert run.facts == {} and "does not hold Megatron's arguments" in notes[0]
    assert run.raw_tokens is None and run.hours is None and run.seed is None


def test_folder_without_validation_names_its_scalars(tmp_path):
    said = problem(write_events(tmp_path / "stock", ("lm loss", 1, 3.0), ("grad-norm", 1, 1.0)))
    assert "has no scalar 'lm loss validation'" in said and "grad-norm, lm loss" in said


def test_folder_whose_losses_are_no_numbers_is_refused(tmp_path):
    said = problem(write_events(tmp_path / "stock", ("lm loss validation", 1, math.nan)))
    assert "none of its 1 validation losses is a finite number" in said


def test_folder_above_event_files_names_them(tmp_path):
    write_events(tmp_path / "runs" / "one", ("lm loss validation", 100, 3.0))
    assert f"Did you mean {tmp_path / 'runs' / 'one'}?" in problem(tmp_path / "runs")


def test_folder_of_our_own_events_has_phases_and_its_runs_name(tmp_path):
    events = [("bag size", step, 4.0 if step <= 30 else 1.0) for step in range(1, 101)]
    events += [("raw tokens", step, 2048.0 * (step + 3 * min(step, 30))) for step in range(1, 101)]
    events += [("lm loss validation", step, 3.0) for step in (50, 100)]
    run, _ = only(write_events(tmp_path / "tst" / "tensorboard", *events))
    assert run.name == "tst" and run.phases == ((4, 30), (1, 70))
    assert run.raw_tokens.tolist() == [2048 * 140, 2048 * 190]


# --- CSV -----------------------------------------------------------------------------------------


def write_csv(path, head, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([head, *rows])
    return path


@pytest.mark.parametrize(
    ("step", "validation", "training"),
    [
        ("step", "lm loss validation", "lm loss"),
        ("_step", "val/loss", "train/loss"),
        ("Step", "eval_loss", "loss"),
        ("iteration", "Validation Loss", "training_loss"),
        ("trainer/global_step", "val_loss", "train_loss"),
        ("Step", "mine - val/loss", "mine - train/loss"),
    ],
)
def test_columns_of_trackers_are_known(tmp_path, step, validation, training):
    path = write_csv(
        tmp_path / "other-seed3.csv",
        [step, training, validation, "epoch"],
        [[1, 3.5, "", 0], [2, 3.0, "", 0], [100, 2.5, 2.75, 0], [200, 2.4, 2.5, 1]],
    )
    run, notes = only(path)
    assert (run.name, run.kind, run.seed, run.num_steps) == ("other-seed3", "CSV", 3, 200)
    assert run.validation.steps.tolist() == [100, 200]
    assert run.validation.values.tolist() == [2.75, 2.5]
    assert run.training["lm loss"].steps.tolist() == [1, 2, 100, 200]
    assert "does not say what the run was made with" in notes[0]


def test_totals_are_costs(tmp_path):
    path = write_csv(
        tmp_path / "run.tsv",
        ["step", "val_loss", "tokens", "_runtime"],
        [[100, 2.0, 1000, 3600], [200, 1.9, 2000, 7200]],
    )
    run, _ = only(path)
    assert run.raw_tokens.tolist() == [1000, 2000] and run.hours.tolist() == [1, 2]
    assert run.numbers["raw tokens per second"] == pytest.approx(2000 / 7200)


def test_file_with_a_row_for_each_value(tmp_path):
    rows = [["loss", 1, 3.0, 11], ["val_loss", 1, 3.5, 11], ["val_loss", 2, 3.25, 12]]
    run, _ = only(write_csv(tmp_path / "ml.csv", ["key", "step", "value", "timestamp"], rows))
    assert run.validation.values.tolist() == [3.5, 3.25] and len(run.training["lm loss"].steps) == 1


def test_extremes_of_grouped_runs_are_passed_over(tmp_path):
    head = ["Step", "a - val/loss", "a - val/loss__MIN", "a - val/loss__MAX"]
    run, _ = only(write_csv(tmp_path / "a.csv", head, [[1, 2.0, 1.0, 3.0]]))
    assert run.validation.values.tolist() == [2.0]


def test_several_runs_in_one_file_are_refused(tmp_path):
    head = ["Step", "a - val/loss", "b - val/loss"]
    said = problem(write_csv(tmp_path / "ab.csv", head, [[1, 2.0, 3.0]]))
    assert "2 columns for the validation loss (a - val/loss, b - val/loss)" in said


def test_missing_columns_are_named_with_those_found(tmp_path):
    said = problem(write_csv(tmp_path / "run.csv", ["time", "accuracy"], [[1, 0.5]]))
    assert "has no column for the step and the validation loss" in said
    assert "Its columns are time, accuracy" in said and "'val loss'" in said


def test_empty_file_and_file_of_other_bytes_are_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    assert "Its columns are none" in problem(tmp_path / "empty.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00step")
    assert "is no CSV file" in problem(tmp_path / "bytes.csv")


def test_column_without_numbers_is_refused(tmp_path):
    said = problem(write_csv(tmp_path / "run.csv", ["step", "val_loss"], [[1, ""], [2, "x"]]))
    assert "has no value in its column of the validation loss" in said


def test_losses_that_are_no_numbers_are_refused_or_left_out(tmp_path):
    head = ["step", "val_loss"]
    said = problem(write_csv(tmp_path / "nan.csv", head, [[1, "nan"], [2, "NaN"]]))
    assert "none of its 2 validation losses is a finite number" in said
    run, notes = only(write_csv(tmp_path / "some.csv", head, [[1, 3.0], [2, "inf"]]))
    assert run.validation.steps.tolist() == [1] and "1 of 2 validation losses" in notes[0]
