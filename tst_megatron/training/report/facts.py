"""Write and read ``facts.json``: what a comparison of runs must know of each of them.

The first rank writes it at each start, before the first step. It is a record for readers: nothing
in it decides whether a run can start, and a damaged one is replaced. Its block has these keys:

- ``format``: of the file.
- ``stream``: everything that decides what a sample reads (``data/stream/cursor.py``).
- ``held-out``: for ``validation``, and ``test`` where there is one, everything that decides the
  held-out sequences and which positions count: ``sha256`` and ``weights`` of the texts of the
  corpora, ``sequences`` of an evaluation, ``latent positions`` of each, ``eod-mask-loss``. Empty
  for a run without evaluations.
- ``parameters``: ``total``; ``active``, those that compute one position, among the experts those
  that it is routed to; ``embedding``, those of the tables of input and output, tied ones once.
- ``FLOPs per step``: Megatron's own count of the floating-point operations of a global batch.
- ``world size`` and ``device`` of this start, and ``peak TFLOP/s per device``: dense, in BF16, on
  which the MFU of ``metrics.jsonl`` is based, also for FP8; null where it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, read_json

FACTS = "facts.json"
"""In a run folder; runs of earlier versions have none."""
FORMAT = 1

_KINDS = {"format": int, "stream": dict, "held-out": dict, "parameters": dict}


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read a run's ``facts.json``; None if there is none.

    Raises:
        Damaged: it cannot be read, or is of a later version.
    """
    facts = read_json(path, _KINDS)
    if facts is not None and facts["format"] != FORMAT:
        raise Damaged(f"is of format {facts['format']}, and this version reads {FORMAT}")
    return facts


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a run's ``facts.json``, replacing what is there.

    Raises:
        OSError: it cannot be written.
    """
    write_beside(path, json.dumps({"format": FORMAT, **facts}, indent=2) + "\n")
