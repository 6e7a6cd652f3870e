"""What is read of the parameters and of Adam's moments in the checkpoints of a run."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence.states import state_rows  # noqa: E402


def save(folder, step, **tensors):
    path = folder / f"iter_{step:07d}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {key.replace("__", "."): value for key, value in tensors.items()},
            checkpoint_id=str(path),
            no_dist=True,
        )


def test_rows_say_how_large_everything_is_and_how_far_it_moved(tmp_path):
    for step, value in ((8, 5.0), (4, 3.0)):
        save(
            tmp_path,
            step,
            weight=torch.zeros(2),
            optimizer__state__param__weight=torch.tensor([value, -value]),
            optimizer__state__exp_avg__weight=torch.tensor([0.5, -0.5]),
            optimizer__state__exp_avg_sq__weight=torch.tensor([1.0, 7.0]),
        )
    first, second = state_rows(tmp_path)
    shared = {"parameter": "weight", "first": 0.5, "second": 2.0}
    assert first == {"step": 4, "rms": 3.0, **shared}
    assert second == {"step": 8, "rms": 5.0, "moved": 2.0, **shared}


def test_moments_in_one_flat_buffer_are_refused(tmp_path):
    save(tmp_path, 4, weight=torch.zeros(2))
    with pytest.raises(ValueError, match="dist-ckpt-optim-fully-reshardable: true"):
        list(state_rows(tmp_path))
