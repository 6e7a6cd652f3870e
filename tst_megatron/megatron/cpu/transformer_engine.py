"""Answer Megatron's validation for the Transformer Engine of the job, where Megatron has none.

A recipe is checked on login nodes, without a GPU and often without Transformer Engine; where it is
installed it is hidden (``hidden.py``). Megatron's validation then finds version 0 and no fused
kernel, and would refuse what the job can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core import utils
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.moe import moe_utils
from packaging.version import Version

from tst_megatron.megatron.cpu import host
from tst_megatron.system.packages import package_version

TESTED_TRANSFORMER_ENGINE = "2.20.2"
"""The version that GPU profiles are checked for; that of the extra ``gpu`` in pyproject.toml."""

_KERNELS = (
    (rope_utils, "fused_apply_rotary_pos_emb"),
    (rope_utils, "fused_apply_rotary_pos_emb_thd"),
    (moe_utils, "fused_permute"),
    (moe_utils, "fused_permute_with_probs"),
    (moe_utils, "fused_sort_chunks_by_index"),
    (moe_utils, "fused_sort_chunks_by_index_with_probs"),
    (moe_utils, "fused_unpermute"),
)
"""The kernels that the configuration of a model looks for, beside the version."""


@contextmanager
def transformer_engine_of_the_job() -> Iterator[None]:
    """Let validation answer for the installed Transformer Engine, or else for the tested one.

    Where this process can ask a GPU, the job itself may run, and Megatron's own answer counts.
    Remove when validation takes the version from its arguments.
    """
    if HAVE_TE or not host.has_no_gpu():
        yield
        return
    before = [(utils, "_te_version", utils._te_version)]
    before += [(module, name, getattr(module, name)) for module, name in _KERNELS]
    installed = package_version("transformer-engine")
    utils._te_version = Version(installed or TESTED_TRANSFORMER_ENGINE)
    for module, name in _KERNELS:
        setattr(module, name, _not_here)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _not_here(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this kernel is Transformer Engine's, which Megatron did not find")
