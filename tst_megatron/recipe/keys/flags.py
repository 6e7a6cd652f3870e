"""Turn a recipe's keys and values into flags of Megatron's parser, and explain wrong ones."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

OWN_KEYS = ("base", "profile", "data", "tst")
"""Keys of a recipe that are not Megatron's."""


_ELSEWHERE = {
    # As the paper and its readers call them.
    "tst.s": "tst.bag-size",
    "tst.k": "tst.bag-size",
    "tst.bag": "tst.bag-size",
    "tst.r": "tst.superposition-fraction",
    "tst.ratio": "tst.superposition-fraction",
    "tst.steps": "tst.superposition-steps",
    # As Hugging Face, TorchTitan and others do.
    "learning-rate": "lr",
    "min-learning-rate": "min-lr",
    "train-batch-size": "global-batch-size",
    "max-steps": "train-iters",
    "num-steps": "train-iters",
    "train-steps": "train-iters",
    "steps": "train-iters",
    "warmup-steps": "lr-warmup-iters",
    "lr-warmup-steps": "lr-warmup-iters",
    "lr-decay-steps": "lr-decay-iters",
    "lr-scheduler-type": "lr-decay-style",
    "max-grad-norm": "clip-grad",
    "sequence-length": "seq-length",
    "max-seq-length": "seq-length",
    "max-length": "seq-length",
    "num-hidden-layers": "num-layers",
    "intermediate-size": "ffn-hidden-size",
    "moe-intermediate-size": "moe-ffn-hidden-size",
    "head-dim": "kv-channels",
    "num-key-value-heads": "num-query-groups",
    "num-experts-per-tok": "moe-router-topk",
    "rms-norm-eps": "norm-epsilon",
    "rope-theta": "rotary-base",
    "tp": "tensor-model-parallel-size",
    "pp": "pipeline-model-parallel-size",
    "ep": "expert-model-parallel-size",
    "cp": "context-parallel-size",
    "save-steps": "save-interval",
    "eval-steps": "eval-interval",
    "logging-steps": "log-interval",
    "gradient-accumulation-steps": "global-batch-size",
}
"""Name in other programs and papers -> the key."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Write the sentence for a key that does not exist, with the one that was probably meant."""
    names = list(known)
    plain = str(key).lower().replace("_", "-")
    near = [_ELSEWHERE[plain]] if _ELSEWHERE.get(plain) in names else []
    # Below this cutoff two names share a few letters and nothing else.
    near = near or difflib.get_close_matches(plain, names, n=1, cutoff=0.75)
    return f"{key}: there is no such key" + (f". Did you mean {near[0]}?" if near else "")


class Flags:
    """Megatron's parser, asked by recipe key."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """Index the parser's options by every name a recipe may use for them."""
        self._parser = parser
        self._actions: dict[str, tuple[argparse.Action, str]] = {}
        for action in parser._actions:
            names = [option.removeprefix("--") for option in action.option_strings]
            for name, option in zip(names, action.option_strings, strict=True):
                self._actions[name] = (action, option)
            # `x: false` for a flag that exists as `--no-x` only.
            if isinstance(action, argparse._StoreFalseAction):
                for name in (action.dest.replace("_", "-"), names[0].removeprefix("no-")):
                    self._actions.setdefault(name, (action, action.option_strings[0]))
        self._actions.pop("help", None)

    def overlay(self, values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values`` with ``over`` in place of every key that means the same flag."""
        taken = {self._actions[key][0].dest for key in over}
        kept = {
            key: value
            for key, value in values.items()
            if key not in self._actions or self._actions[key][0].dest not in taken
        }
        return {**kept, **over}

    def default(self, key: str) -> Any:
        """Return Megatron's default of a key."""
        return self._actions[key][0].default

    def destination(self, key: str) -> str | None:
        """Return Megatron's attribute for a key, or None if it has no such key."""
        return self._actions[key][0].dest if key in self._actions else None

    def value(self, values: Mapping[str, Any], key: str) -> Any:
        """Return the value that Megatron will give a key: what ``values`` say, or else its default.

        ``no-rope-fusion: true`` and ``rope-fusion: false`` both make ``rope-fusion`` false.
        """
        action, _ = self._actions[key]
        for name, value in values.items():
            if self.destination(name) == action.dest and value is not None:
                is_negated = isinstance(value, bool) and self._is_negation(name)
                return not value if is_negated else value
        return action.default

    def parse(self, values: Mapping[str, Any]) -> argparse.Namespace:
        """Parse the values as Megatron does, with its defaults; wrong keys and values are left out.

        So ``2e-3`` and ``0.002`` are one number, and a default is the same written out or left out.
        """
        flags: list[str] = []
        for key, value in values.items():
            flags += self.convert({key: value})[0]
        return self._parser.parse_args(flags)

    def override(self, values: Mapping[str, Any], key: str) -> Any:
        """Return what to write after ``key=`` to get what ``values`` say; None removes the key."""
        action, _ = self._actions[key]
        is_said = any(self.destination(name) == action.dest for name in values)
        if not is_said and action.nargs != 0:
            return None
        value = self.value(values, key)
        return not value if isinstance(value, bool) and self._is_negation(key) else value

    def _is_negation(self, key: str) -> bool:
        action, option = self._actions[key]
        if isinstance(action, argparse.BooleanOptionalAction):
            return option == action.option_strings[-1]
        return isinstance(action, argparse._StoreFalseAction) and f"--{key}" == option

    def convert(self, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Turn keys and values into command-line flags, and name every key or value that is wrong.

        Returns:
            (flags, problems).
        """
        flags: list[str] = []
        problems: list[str] = []
        spelling: dict[str, str] = {}
        for key, value in values.items():
            if key not in self._actions:
                problems.append(unknown_key(key, [*self._actions, *OWN_KEYS]))
                continue
            action, option = self._actions[key]
            if action.dest in spelling:
                problems.append(f"{key}: {spelling[action.dest]} means the same. Give one of them")
                continue
            spelling[action.dest] = key
            try:
                flags += _as_flags(action, option, key, value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                problems.append(f"{key}: {error}")
        return flags, problems


def _as_flags(action: argparse.Action, option: str, key: str, value: Any) -> list[str]:
    if action.nargs == 0:
        return _as_switch(action, option, key, value)
    if value is None:
        return []
    if action.nargs is None:
        if isinstance(value, list):
            value = _as_one_word(action, value)
        _check_value(action, value)
        # In one word, since text that starts with a dash would be taken for a flag.
        return [f"{option}={_as_text(value)}"]
    entries = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(entries) != action.nargs:
        raise ValueError(f"{value!r} must be a list of {action.nargs} values")
    if action.nargs == "+" and not entries:
        raise ValueError(f"{value!r} must have one value or more")
    for entry in entries:
        _check_value(action, entry)
    return [option, *(_as_text(entry) for entry in entries)]


def _as_one_word(action: argparse.Action, value: list[Any]) -> str:
    """Spell a list in one word, for an option that takes one word: ``[0,1]`` or ``(8,0)``."""
    is_of_numbers = all(type(entry) is int for entry in value)
    if is_of_numbers and action.type not in (None, str, int, float, bool):
        entries = ",".join(map(str, value))
        for word in (f"[{entries}]", f"({entries})"):
            with contextlib.suppress(ValueError):
                if isinstance(_parse(action, word), list | tuple):
                    return word
    raise ValueError(f"{value!r} is a list, and one value is wanted")


def _as_switch(action: argparse.Action, option: str, key: str, value: Any) -> list[str]:
    """Spell ``key: value`` as a flag that takes no value."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    if isinstance(action, argparse.BooleanOptionalAction):
        on, off = action.option_strings[0], action.option_strings[-1]
        return [on if value != (option == off) else off]
    is_negation = option.removeprefix("--") != key
    return [option] if value != is_negation else []


def _check_value(action: argparse.Action, value: Any) -> None:
    wanted: Any = action.type or str
    if isinstance(value, dict | list) and wanted not in _WANTED:
        raise ValueError(f"{value!r} is a block or a list, and one value is wanted")
    if wanted is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        return
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is {_WANTED.get(wanted, 'true or false, and text is wanted')}")
    if wanted is int and not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if wanted is float:
        _check_number(value)
    if wanted is str and isinstance(value, float):
        # YAML may have changed the digits that were written.
        raise ValueError(f"{value!r} is a number, and text is wanted. Put it in quotes")
    parsed = value
    if wanted not in (int, float, str):
        parsed = _parse(action, value)
    if action.choices is not None and parsed not in action.choices:
        raise ValueError(f"{value!r} is none of {_choices(action)}")


_WANTED = {int: "not a whole number", float: "not a number"}


def _check_number(value: Any) -> None:
    # YAML 1.1 reads 1e-4 as text; a number was meant.
    try:
        float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None


def _parse(action: argparse.Action, value: Any) -> Any:
    """Convert a value by a type of Megatron's own, which may raise any exception."""
    convert: Any = action.type
    try:
        return convert(_as_text(value))
    except Exception as error:
        if action.choices is not None:
            raise ValueError(f"{value!r} is none of {_choices(action)}") from None
        raise ValueError(f"{value!r} is not accepted: {error}") from None


def _choices(action: argparse.Action) -> str:
    return ", ".join(str(getattr(choice, "name", choice)) for choice in action.choices or ())


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        # bool() takes every text for true except the empty one.
        return "True" if value else ""
    return repr(value) if isinstance(value, float) else str(value)
