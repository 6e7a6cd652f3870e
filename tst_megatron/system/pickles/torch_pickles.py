"""Read the pickles inside the archives of ``torch.save``: arguments, random state and so on."""

from __future__ import annotations

import functools
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from tst_megatron.system.pickles.restricted_unpickler import (
    Class,
    Function,
    Names,
    Refused,
    Unpickler,
    reader_of,
)

_NUMPY_KINDS = "biuf"
"""Types of NumPy whose every bit pattern is a number: none that holds pointers."""


ENUMS = {
    "megatron.core.enums": ("ModelType", "Fp8Recipe", "Fp4Recipe"),
    "megatron.core.rerun_state_machine": (
        "RerunDiagnostic",
        "RerunMode",
        "RerunState",
        "RerunValidationStatus",
    ),
    "megatron.core.transformer.enums": (
        "AttnBackend",
        "CudaGraphModule",
        "CudaGraphScope",
        "InferenceCudaGraphScope",
    ),
    "signal": ("Signals",),
}
"""Enumerations in saved arguments and in the state of Megatron's rerun state machine."""

EXTRA_STATE = "_extra_state"
"""In the names of what layers keep beside their weights."""
NAMED_TUPLES = {"megatron.core.rerun_state_machine": ("Call", "Caller")}

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2"),
)
"""Types of numbers that tensors have."""


def dtypes() -> dict[tuple[str, str], Any]:
    """Return the types of tensors, as pickles name them."""
    import torch

    return {("torch", name): getattr(torch, name) for name in DTYPES if hasattr(torch, name)}


def paths() -> dict[tuple[str, str], Any]:
    """Return the names of paths; a path is only text until it is used."""
    # The second is the name of Python 3.13.
    return dict.fromkeys(
        (("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")), Function(Path)
    )


def layout(name: str) -> Any:
    """Return the only layout that a saved tensor may have."""
    import torch

    if name != "torch.strided":
        raise Refused(f"it holds a tensor of layout {name!r}")
    return torch.strided


def load_archive(stream: BinaryIO, names: Names | None = None, **options: Any) -> Any:
    """Load an archive as ``torch.load`` does, if every name in its pickle is listed.

    Args:
        stream: a seekable stream that holds the archive and nothing else.
        names: allowed names beside ``archive_names()``.
        options: of ``torch.load``.

    Raises:
        Exception: damaged bytes raise whatever they happen to mean.
    """
    import torch

    reader = reader_of({**archive_names(), **(names or {})})
    if stream.read(4) != b"PK\3\4":
        raise Refused("it is no archive of torch.save")
    stream.seek(0)
    # Torch would run what it holds as a program of TorchScript, and reads no pickle then.
    if "constants.pkl" in torch._C.PyTorchFileReader(stream).get_all_records():  # type: ignore[call-arg, arg-type]
        raise Refused("it is a program of TorchScript")
    stream.seek(0)
    pickles = SimpleNamespace(__name__=__name__, Unpickler=reader)
    return torch.load(stream, weights_only=False, pickle_module=pickles, **options)


# --- what is listed ------------------------------------------------------------------------------


@functools.cache
def archive_names() -> Names:
    """Return what an archive of ``torch.save`` may name, without classes of the saving program."""
    import argparse

    import torch

    names = {
        ("argparse", "Namespace"): Class(argparse.Namespace),
        ("collections", "OrderedDict"): Function(OrderedDict),
        ("_codecs", "encode"): Function(_bytes_of),
        **paths(),
        ("_io", "BytesIO"): Class(io.BytesIO),
        ("torch", "Size"): Function(torch.Size),
        ("torch", "device"): Function(torch.device),
        # Random state of CUDA graphs, and of Transformer Engine's tracker.
        ("torch._C", "Generator"): Function(_generator),
        ("torch.serialization", "_get_layout"): Function(layout),
        ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
        ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): Function(_numpy_type),
        **dtypes(),
    }
    # Python 2's name is what protocol 2 has, in which torch.save writes.
    for module in ("builtins", "__builtin__"):
        names[module, "bytes"] = Function(_no_bytes)
        names[module, "set"] = Function(_set_of)
        names[module, "frozenset"] = Function(_set_of)
    # NumPy 1 and 2.
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "_reconstruct"] = Function(_empty_array)
        names[module, "scalar"] = Function(_numpy_number)
    return names


def _generator(device: Any) -> Any:
    import torch

    return torch.Generator(device)


def _bytes_of(text: str, encoding: str) -> bytes:
    """Make bytes as protocol 2 spells them; other codecs can make more than they are given."""
    if encoding != "latin1":
        raise Refused(f"it decodes {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Make empty bytes as protocol 2 spells them; a number would ask for as much memory."""
    return b""


def _set_of(values: list[Any]) -> set[Any]:
    if type(values) is not list:
        raise Refused("it makes a set of what is no list")
    return set(values)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, grad: bool, hooks: Any) -> Any:
    import torch

    if hooks:
        raise Refused("it holds a tensor with functions to be called")
    # Torch looks whether all of it is inside what is stored.
    rebuild: Any = torch._utils._rebuild_tensor_v2
    return rebuild(storage, offset, size, stride, grad, OrderedDict())


def _numpy_type(code: str, *_: Any) -> Any:
    import numpy

    # A string such as "O" or "i4,O" would name pointers.
    if not (type(code) is str and code[:1] in _NUMPY_KINDS and code[1:] in ("1", "2", "4", "8")):
        raise Refused(f"it holds numbers of NumPy's type {code!r}")
    return numpy.dtype(code)


def _empty_array(kind: Any, shape: Any, _: Any) -> Any:
    import numpy

    if kind != "ndarray" or shape != (0,):
        raise Refused("it holds an array of another kind")
    return numpy.empty(0)


def _numpy_number(dtype: Any, data: bytes) -> Any:
    import numpy

    if type(data) is not bytes or len(data) != dtype.itemsize:
        raise Refused("it holds a number whose bytes are not those of its type")
    return numpy.frombuffer(data, dtype)[0]


def is_listed(module: str, name: str) -> bool:
    """Tell whether an object of a checkpoint may name this; needs no Megatron."""
    if (module, name) in archive_names():
        return True
    if name in ENUMS.get(module, ()) or name in NAMED_TUPLES.get(module, ()):
        return True
    # torch.load puts a stand-in of its own in the place of a storage.
    return module == "torch" and name.isidentifier() and name.endswith("Storage")


# --- what is unpickled by others -----------------------------------------------------------------


_EXTRA_STATE = {
    "builtins": (
        *("bool", "bytearray", "bytes", "dict", "float", "int", "list", "set", "str", "tuple"),
    ),
    "collections": ("OrderedDict",),
    "megatron.core.extensions.transformer_engine": ("TEDelayedScaling",),
    "megatron.core.safe_globals": ("safe_load_from_bytes",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "torch": ("Size", *DTYPES),
    "torch._tensor": ("_rebuild_from_type_v2",),
    "torch._utils": ("_rebuild_tensor_v2",),
    # Megatron has put a restricted one in its place.
    "torch.storage": ("UntypedStorage", "_load_from_bytes"),
    # By name: the module also has what it imports, some of which runs what it is given.
    "transformer_engine.common.recipe": (
        *("DelayedScaling", "Float8BlockScaling", "Float8CurrentScaling", "MXFP8BlockScaling"),
        *("NVFP4BlockScaling", "Format", "_FormatHelper", "MMParams", "QParams"),
    ),
}
"""As Megatron's ``SafeUnpickler`` has it, which looks at some of these states only."""


class _Nothing:
    """Stands for every object of a pickle whose names alone are checked."""

    def __init__(self, *_: Any) -> None:
        pass

    append = extend = __setitem__ = add = __init__


class _NamesOnly(Unpickler):
    """Checks the names in a pickle, and makes no object of it."""

    dispatch: dict[int, Any] = dict(Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if name not in _EXTRA_STATE.get(module, ()):
            raise Refused(f"it names {module}.{name}, which no checkpoint holds")
        return Function(_Nothing)

    def _make_nothing(self) -> None:
        self.stack[-2:] = [_Nothing()]

    def _fill_nothing(self) -> None:
        self.stack.pop()

    dispatch[pickle.NEWOBJ[0]] = _make_nothing
    dispatch[pickle.BUILD[0]] = _fill_nothing


def check_extra_states(states: Any) -> None:
    """``check_extra_state`` of what an item of a checkpoint holds: one layer's, or a list of them.

    Raises:
        Refused: one of them names more than Transformer Engine's classes.
    """
    import torch

    for state in states if isinstance(states, list) else [states]:
        if isinstance(state, torch.Tensor):
            check_extra_state(state.detach().cpu().contiguous().view(torch.uint8).numpy())


def check_extra_state(data: Any) -> None:
    """Refuse the state of a layer of Transformer Engine that names more than its classes.

    Transformer Engine unpickles it without a look, when FP8 is on.

    Args:
        data: its bytes, in anything that gives a buffer; none where the layer has no state.

    Raises:
        Refused: it does, or is no pickle.
    """
    if not memoryview(data).nbytes:
        return
    try:
        _NamesOnly(io.BytesIO(memoryview(data))).load()
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"the state of a layer is no pickle ({error!r})") from error
