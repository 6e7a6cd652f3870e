"""Unpickle without running foreign code: a list says what a pickle may name, call and fill.

A pickle is a program: it names functions and calls them. Here it may only name what is listed, only
call listed functions, which check their arguments, and only fill objects that it has made itself.
Everything else counts as damage.
"""

from __future__ import annotations

import functools
import gc
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

Names = Mapping[tuple[str, str], Any]
"""Module and name as a pickle spells them -> what stands for them."""

_InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Refused(pickle.UnpicklingError):
    """A pickle wants something that no checkpoint holds."""


class Function:
    """A function that a pickle may call, in place of a callable that it names."""

    def __init__(self, call: Callable[..., Any]) -> None:
        """Stand for ``call``, which looks at its arguments."""
        self.call = call


class Class:
    """A class of which a pickle may make an empty object, and give it its attributes."""

    def __init__(self, real: type, *, takes_values: bool = False) -> None:
        """Stand for ``real``; a named tuple ``takes_values`` when it is made."""
        self.real = real
        self.takes_values = takes_values


def enum_of(real: Any) -> Function:
    """Stand for an enumeration, of which a pickle names a member by its value."""
    return Function(lambda value: real(value))


class Unpickler(_InPython):  # type: ignore[misc]
    """Makes the objects of a pickle if all of their names are listed.

    It builds on Python's implementation in Python, for two reasons. Each instruction that calls or
    changes something can be checked. And its table of remembered objects does not fill the memory
    when a flipped bit names a place far behind its end. Remove when ``pickle.Unpickler`` has both.
    """

    dispatch: dict[int, Any] = dict(_InPython.dispatch)
    listed: Names = {}
    filled: frozenset[type] = frozenset()
    """The classes of ``listed``."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name.

        Raises:
            Refused: it is not listed; dotted names never are.
        """
        try:
            return self.listed[module, name]
        except (KeyError, TypeError):
            raise Refused(f"it names {module}.{name}, which no checkpoint holds") from None

    def get_extension(self, code: int) -> None:
        """Refuse names that stand in a table of this process."""
        raise Refused(f"it names extension {code}, which no checkpoint holds")

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise Refused("it calls what no checkpoint calls")
        self.stack[-1] = function.call(*arguments)

    def _new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Class) or (arguments and not kind.takes_values):
            raise Refused("it makes what no checkpoint holds")
        self.append(kind.real.__new__(kind.real, *arguments))

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if (fill := _fill_of(made)) is not None:
            fill(state)
            return
        if type(made) not in self.filled:
            raise Refused(f"it changes a {type(made).__name__}, which no checkpoint does")
        if (set_state := getattr(type(made), "__setstate__", None)) is not None:
            set_state(made, state)
        elif type(state) is dict and all(type(key) is str for key in state):
            vars(made).update(state)
        else:
            raise Refused(f"it gives a {type(made).__name__} no attributes")

    def _refuse(self) -> None:
        raise Refused("it makes an object in a way that no checkpoint does")

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new_object
    dispatch[pickle.BUILD[0]] = _build
    for _opcode in (
        *(pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ),
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_opcode[0]] = _refuse


def _fill_of(made: Any) -> Callable[[Any], None] | None:
    """Return the function that gives an object of a listed function its values; None for others."""
    kind = type(made)
    # Imported by the functions that made it, if anything did.
    if (kind.__module__, kind.__name__) == ("torch._C", "Generator"):
        return functools.partial(_fill_generator, made)
    if kind.__module__.partition(".")[0] != "numpy":
        return None
    return functools.partial(_fill_array if type(made).__name__ == "ndarray" else _fill_type, made)


def _fill_generator(generator: Any, state: Any) -> None:
    seed, offset, numbers = state
    if type(seed) is not int or type(offset) not in (int, type(None)):
        raise Refused("it holds a random state without a seed")
    # Torch looks at the type and the size of the rest.
    generator.__setstate__((seed, offset, numbers))


def _fill_array(array: Any, state: Any) -> None:
    _, shape, dtype, is_fortran, data = state
    count = 1
    for size in shape:
        count *= size
    if type(data) is not bytes or count * dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise Refused("it holds an array whose bytes are not those of its shape")
    array.__setstate__((1, shape, dtype, bool(is_fortran), data))


def _fill_type(_: Any, state: Any) -> None:
    if state[1:] not in (("<", None, None, None, -1, -1, 0), ("|", None, None, None, -1, -1, 0)):
        raise Refused("it holds a type of NumPy with parts")


def unpickled(stream: BinaryIO, names: Names) -> Any:
    """Return the object in a pickle that names only these."""
    # A million objects that stay: searching them for garbage would take most of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return reader_of(names)(stream).load()
    finally:
        if was_enabled:
            gc.enable()


def reader_of(names: Names) -> type[Unpickler]:
    """Make the unpickler that knows these names."""
    real = frozenset(kind.real for kind in names.values() if isinstance(kind, Class))
    return type("Reader", (Unpickler,), {"listed": names, "filled": real})
