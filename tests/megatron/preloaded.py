"""What the server that forks ranks imports once: everything that a rank would import for itself.

Importing Megatron takes most of a rank's start. ``tiny.fork_ranks`` starts ranks as forks of a
process that has done it, with nothing else initialised; ``tiny.start_ranks`` starts them as srun
does.
"""

import machine  # noqa: F401 - before anything that starts threads

from tst_megatron.megatron.cpu import host

host.install()

# What Megatron and torch import when a model is built, saved or stepped.
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import megatron.core.optimizer
import megatron.core.tokenizers.text  # noqa: F401
import torch._dynamo
import torch.distributed.tensor  # noqa: F401

import tst_megatron.cli.app
import tst_megatron.training.build
import tst_megatron.training.check.check_recipe
import tst_megatron.training.check.child
import tst_megatron.training.check.rehearse
import tst_megatron.training.pretrain
import tst_megatron.training.step
import tst_megatron.training.train  # noqa: F401
