"""Ask for optional packages without importing them, and import large ones quickly.

Each package that may be missing is asked for here and nowhere else.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def import_if_there(module: str) -> ModuleType | None:
    """Import a module of a package that may be missing; None if the package is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    return importlib.import_module(module)


def package_version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_transformer_engine() -> bool:
    """Tell whether Transformer Engine is installed, also where the CPU host hides it."""
    # A package that is installed to be edited may have a finder of its own.
    is_on_path = importlib.machinery.PathFinder.find_spec("transformer_engine") is not None
    return is_on_path or package_version("transformer-engine") is not None


def has_nvidia_resiliency_ext() -> bool:
    """Tell whether the package of Megatron's default for asynchronous saves is installed."""
    return importlib.util.find_spec("nvidia_resiliency_ext") is not None


@contextmanager
def collecting_later() -> Iterator[None]:
    """Switch Python's garbage collector off during imports, and exempt what they define for good.

    torch and Megatron make a million objects that stay. The collector would visit all of them again
    and again, during the imports and in everything that makes many objects afterwards. It took nine
    tenths of the time in which Megatron reads its arguments.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Else Python's last collection leaves them, and triton 3.9 calls each of its own a leak.
        atexit.register(gc.unfreeze)
        if was_enabled:
            gc.enable()
