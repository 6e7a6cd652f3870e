"""Reading the pickles of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_description(checkpoint: Path) -> Any:
    """What ``.metadata`` of a ``torch_dist`` checkpoint says: torch's ``Metadata``.

    Raises:
        Exception: a damaged pickle raises whatever its bytes happen to mean.
    """
    # Takes seconds to import, and most commands do not need it.
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return FileSystemReader(checkpoint).read_metadata()
