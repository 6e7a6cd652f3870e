"""Packages that may be missing, each probed here and nowhere else, without importing it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType


def import_if_there(module: str) -> ModuleType | None:
    """A module of a package that may be missing; None where the package is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    return importlib.import_module(module)


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed; importing it needs CUDA."""
    return importlib.util.find_spec("transformer_engine") is not None


def has_nvidia_resiliency_ext() -> bool:
    """Whether Megatron's default strategy of asynchronous saves is installed."""
    return importlib.util.find_spec("nvidia_resiliency_ext") is not None
