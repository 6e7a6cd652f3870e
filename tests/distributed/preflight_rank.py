"""One rank of a preflight, forked from a process that has imported what it needs."""

import os
import sys

from tst_megatron.cli import app
from tst_megatron.megatron.cpu import device  # noqa: F401
from tst_megatron.nodes.preflight import collectives  # noqa: F401 - so that torch is there


def run(environment, command):
    """Be ``tst-megatron COMMAND`` in a job; ends the process with its status."""
    for name in list(os.environ):
        if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            del os.environ[name]
    os.environ.update(environment)
    sys.argv = ["tst-megatron", *command]
    app.main()
