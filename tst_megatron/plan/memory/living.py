"""Follow the memory that tensors take while something runs, operation by operation.

Unlike the counter of an allocator, this leaves out what a kernel of the CPU works on inside, and
its sequence of moments is the same for every size of the same computation.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, after each operation, the bytes of all storages that came into being meanwhile."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.moments: list[int] = []
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what lives after it."""
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages_in((args, kwargs))}
        output = func(*args, **kwargs)
        for storage in _storages_in(output):
            # A view of what was there before, as of a weight, is nothing new.
            if storage._cdata not in given:
                self._follow(storage)
        self.moments.append(sum(self._sizes.values()))
        return output

    def emptied(self) -> None:
        """Take notice of storages that were emptied, or filled again, without an operation."""
        for key, reference in self._references.items():
            storage = reference()
            if storage is not None:
                self._sizes[key] = storage.nbytes()

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata

        def forget(reference: weakref.ref[torch.UntypedStorage]) -> None:
            # Another storage may have taken its place already.
            if self._references.get(key) is reference:
                del self._references[key], self._sizes[key]

        self._references[key] = weakref.ref(storage, forget)
        self._sizes[key] = storage.nbytes()


def _storages_in(tree: Any) -> list[torch.UntypedStorage]:
    return [each.untyped_storage() for each in tree_iter(tree) if isinstance(each, torch.Tensor)]
