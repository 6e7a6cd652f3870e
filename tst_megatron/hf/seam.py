"""The way to Megatron for everything that reads or writes a checkpoint in one CPU process."""

from __future__ import annotations

from types import ModuleType

from tst_megatron.host import cpu


def seam() -> ModuleType:
    """``upstream.checkpoint``, in a process made ready for it.

    Imported on first use: importing Megatron already needs the CPU host.

    Raises:
        RuntimeError: this process already uses a GPU, or is one rank of a larger job.
    """
    if not cpu.is_installed():
        if cpu.is_in_use_elsewhere():
            raise RuntimeError(
                "A checkpoint is read on the CPU, but this process already uses a GPU. "
                "Read it in a process of its own."
            )
        # Reading is CPU work also on a machine that has a GPU.
        cpu.install(even_with_gpu=True)
    from tst_megatron.upstream import checkpoint

    checkpoint.start_alone()
    return checkpoint
