"""Build a parser of Megatron's command-line options without importing Megatron.

Importing Megatron takes seconds. Most mistakes in a recipe can be found from the names, types and
defaults of the options. ``table.json`` has them for the version that this project is pinned to.
``tools/update_keys.py`` writes it, and ``test_megatron_keys.py`` compares it with Megatron's own
parser.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tst_megatron.recipe.keys.layer_patterns import frequency, window

TABLE = Path(__file__).with_suffix(".json")

TYPES: Mapping[str | None, Callable[[str], Any] | None] = {
    None: None,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "moe_freq_type": frequency,
    "la_freq_type": frequency,
    "no_rope_freq_type": frequency,
    "tuple_type": window,
    # Members of an enumeration are kept as the names that a recipe writes.
    "enum_type_handler": str,
    "_parse_cuda_graph_modules_arg": str,
}
"""What Megatron calls the type of an option -> what a text is turned into here."""

ACTIONS = {
    "store": argparse._StoreAction,
    "true": argparse._StoreTrueAction,
    "false": argparse._StoreFalseAction,
    "boolean": argparse.BooleanOptionalAction,
}


@functools.cache
def argument_parser() -> argparse.ArgumentParser:
    """Return a parser with the names, types, choices and defaults of Megatron's own.

    Values of Megatron's own types differ: an enumeration is its name in small letters, and a tuple
    or a list stays one. Megatron receives the flags of a recipe as text in any case.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in json.loads(TABLE.read_text(encoding="utf-8")):
        parser.add_argument(*option["names"], **_settings(option))
    return parser


def key_of(destination: str) -> str:
    """Return the recipe key of an attribute of Megatron's arguments: its option's first name."""
    return _keys()[destination]


def destination_of(key: str) -> str:
    """Return the attribute of Megatron's arguments that a key sets: ``fp8`` for ``fp8-format``."""
    return _destinations()[key]


@functools.cache
def _keys() -> dict[str, str]:
    options = argument_parser()._actions
    return {option.dest: option.option_strings[0].removeprefix("--") for option in options}


@functools.cache
def _destinations() -> dict[str, str]:
    options = argument_parser()._actions
    return {
        name.removeprefix("--"): option.dest for option in options for name in option.option_strings
    }


def _settings(option: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "dest": option["destination"],
        "default": option["default"],
        "action": ACTIONS[option["action"]],
    }
    if option["action"] == "store":
        more = {"type": TYPES[option["type"]], "nargs": option["nargs"]}
        settings |= {**more, "choices": option["choices"]}
    return settings


def table_of(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Return the table of a parser's options, in the form of ``table.json``."""
    kinds = {kind: name for name, kind in ACTIONS.items()}
    return [
        {
            "names": _names(action),
            "destination": action.dest,
            "action": kinds[type(action)],
            "type": getattr(action.type, "__name__", None),
            "nargs": action.nargs if type(action) is argparse._StoreAction else None,
            "default": _plain(action.default),
            "choices": None
            if action.choices is None
            else [_plain(each) for each in action.choices],
        }
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]


def _names(action: argparse.Action) -> list[str]:
    """Return the names without the negations that argparse adds to a boolean option."""
    if not isinstance(action, argparse.BooleanOptionalAction):
        return list(action.option_strings)
    return [name for name in action.option_strings if not name.startswith("--no-")]


def _plain(value: Any) -> Any:
    """Replace a member of an enumeration by the name that a recipe writes."""
    return getattr(value, "name", value)
