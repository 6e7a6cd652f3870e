"""``tst-megatron`` with faults that the environment asks for: ``with_fault.py train ...``.

``FAULTS`` is a JSON object; steps count from 1, as in the log.
"""

import json
import os
import signal
import sys
import time

from tst_megatron.megatron.cpu import host

FAULTS = json.loads(os.environ["FAULTS"])


def slow_writes(seconds):
    """Each asynchronous save takes longer than the steps after it."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    write = FileSystemWriterAsync.write_preloaded_data

    def slowly(*args, **kwargs):
        time.sleep(seconds)
        return write(*args, **kwargs)

    FileSystemWriterAsync.write_preloaded_data = slowly


def fault_the_loss():
    """Wrap the loss of every micro-batch, where each fault finds its moment."""
    import torch
    from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

    from tst_megatron.megatron import names
    from tst_megatron.training import step as training_step

    loss_func = training_step.loss_func
    evaluated = [0]
    done = set()

    def is_first(what):
        done_before = what in done
        done.add(what)
        return not done_before

    def faulty(mask, name, losses):
        if not torch.is_grad_enabled():
            evaluated[0] += 1
            if evaluated[0] == FAULTS.get("stop-in-evaluation"):
                signal_the_group()
            return loss_func(mask, name, losses)
        step = names.get_args().curr_iteration + 1
        if step == FAULTS.get("stop-at") and is_first("stop"):
            signal_the_group()
        if step == FAULTS.get("kill-worker-at") and is_first("kill"):
            os.kill(PersistentAsyncCaller._persistent_process.pid, signal.SIGKILL)
        factor = FAULTS.get("scale", {}).get(name, 1.0)
        if step in FAULTS.get("spikes", ()):
            factor *= 20.0
        if step == FAULTS.get("nan-at"):
            factor = float("nan")
        return loss_func(mask, name, losses * factor)

    training_step.loss_func = faulty


def signal_the_group():
    """As a terminal or a scheduler does; time enough for it to arrive."""
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.3)


if __name__ == "__mp_main__" and "slow-writes" in FAULTS:
    host.install()
    slow_writes(FAULTS["slow-writes"])

if __name__ == "__main__":
    os.setsid()
    host.install()
    from tst_megatron.cli.app import main
    from tst_megatron.megatron import loop

    loop.SPIKE_FACTOR = FAULTS.get("spike-factor", loop.SPIKE_FACTOR)
    fault_the_loss()
    sys.exit(main())
