"""Read the numbers and words of a pickle without any class or function that it names.

Everything that a pickle names becomes a placeholder that does nothing. So none of it can run, and
no library is needed. Numbers, strings, lists and dictionaries are read as they are.
"""

from __future__ import annotations

import io
import pickle
from argparse import Namespace
from collections import OrderedDict
from typing import Any, BinaryIO

from tst_megatron.system.pickles.restricted_unpickler import Refused
from tst_megatron.system.pickles.torch_archive import record_in
from tst_megatron.system.pickles.torch_pickles import is_listed


class Placeholder:
    """Stands for an object of any class, or for what any function would return."""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        """Make one, whatever the object would be made of."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep nothing."""

    def append(self, value: Any) -> None:
        """Keep nothing."""

    def extend(self, values: Any) -> None:
        """Keep nothing."""

    add = append


class _Inert(pickle.Unpickler):
    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        # Classes of this reading alone, since a pickle can give a class attributes too.
        self._nothing = type("Placeholder", (Placeholder,), {})
        self._plain = {
            ("argparse", "Namespace"): type("Namespace", (Namespace,), {}),
            ("collections", "OrderedDict"): OrderedDict,
        }

    def find_class(self, module: str, name: str) -> Any:
        if not is_listed(module, name):
            # Nothing of it would run here, but whoever loads it is to be warned.
            raise Refused(f"it names {module}.{name}, which no checkpoint holds")
        return self._plain.get((module, name), self._nothing)

    def persistent_load(self, _: Any) -> Any:
        # Where a tensor would be.
        return self._nothing()


def read_inert(archive: BinaryIO) -> Any:
    """Read an archive of ``torch.save``, with a ``Placeholder`` for everything but plain values.

    Args:
        archive: a seekable stream in which ``archive_problem`` finds no problem.

    Raises:
        Refused: it names what no checkpoint holds.
        Exception: a pickle that nothing wrote raises whatever its bytes happen to mean.
    """
    return _Inert(io.BytesIO(record_in(archive, "data.pkl"))).load()
