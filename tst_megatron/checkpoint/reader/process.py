"""Make this process one that can build Megatron's model and read a checkpoint, on the CPU alone."""

from __future__ import annotations

from tst_megatron.megatron.cpu import host


def in_one_process() -> None:
    """Prepare this process for Megatron: the CPU host, and a job of one rank.

    Call it before ``tst_megatron.megatron.distributed_checkpoint`` is imported, because importing
    Megatron already needs the CPU host where there is no GPU. A second call changes nothing.

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
    # Importing Megatron needs the host that was installed above.
    from tst_megatron.megatron.distributed_checkpoint.model import start_alone

    start_alone()
