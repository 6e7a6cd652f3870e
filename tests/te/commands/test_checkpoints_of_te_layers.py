"""What Transformer Engine's layers save in any layout is exported, bits and logits."""

import sys
from pathlib import Path

import pytest
import te_host

te_host.skip_without_transformer_engine()

import save_te_checkpoints
from hf_checkpoints import save_once
from torch.distributed.checkpoint import FileSystemReader

from tst_megatron.hf.export import export


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_once(tmp_path_factory.getbasetemp(), Path(save_te_checkpoints.__file__))


def test_commands_do_not_see_transformer_engine():
    from megatron.core.extensions.transformer_engine import HAVE_TE

    assert sys.modules["transformer_engine"] is None and HAVE_TE is False


@pytest.mark.parametrize("layout", save_te_checkpoints.LAYOUTS)
def test_export_is_proven(saved, layout, tmp_path):
    read = FileSystemReader(saved / layout / "iter_0000003").read_metadata()
    states = [key for key in read.state_dict_metadata if "_extra_state" in key]
    assert len(states) >= 9, "scales of FP8 are in the checkpoint"
    report = export(saved / layout, tmp_path / "hf", with_tokenizer=False, compute=True)
    proof = report.verification
    assert proof.num_tensors > 15
    assert proof.num_parameters == report.num_parameters
    assert proof.computed.max_logit > 1
    assert proof.computed.max_logit_difference <= 1e-5
    assert proof.computed.num_greedy_tokens >= 30
