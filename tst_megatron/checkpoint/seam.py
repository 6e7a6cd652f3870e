"""The way to Megatron for everything that reads or writes a checkpoint in one CPU process."""

from __future__ import annotations

from types import ModuleType

from tst_megatron.megatron.cpu import host


def seam() -> ModuleType:
    """``upstream.checkpoint``, in a process made ready for it.

    Imported on first use: importing Megatron already needs the CPU host.

    Raises:
        RuntimeError: this process already uses a GPU, or is one rank of a larger job.
    """
    if not host.is_installed():
        if host.is_in_use_elsewhere():
            raise RuntimeError(
                "A checkpoint is read on the CPU, but this process already uses a GPU. "
                "Read it in a process of its own."
            )
        # Reading is CPU work also on a machine that has a GPU.
        host.install(even_with_gpu=True)
    from tst_megatron.megatron.distributed_checkpoint import model

    model.start_alone()
    return model
