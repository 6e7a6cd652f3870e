"""Pairs of texts that differ in one digit, one letter, or in the order of two of their parts."""

from __future__ import annotations

import random

from tst_megatron.audit.items import Passage
from tst_megatron.audit.probes.choices import Task
from tst_megatron.audit.probes.encoding import Encoder, Placement

THINGS = "box door key book lamp boat ring coat cup gate map bell tower wagon mill".split()
COLOURS = "red blue green white black grey pink brown".split()
NAMES = "Tom Mia Ben Ann Max Eva Leo Ida Sam Amy Dan Zoe Jack Rose Paul Kate".split()
DEEDS = "paid called met saw told asked thanked helped".split()
DIGITS = "0123456789"
CONSONANTS = "bcdfghjklmnpqrstvwxz"
LENGTH = 5
"""Of a code."""
GROUP = "Exact recall and order"


def _code(alphabet: str, generator: random.Random) -> str:
    return "".join(generator.sample(alphabet, LENGTH))


def _statement(value: str, generator: random.Random) -> tuple[str, int]:
    """Return a context that gives a value and asks for it, and where the value begins."""
    thing = f"{generator.choice(COLOURS)} {generator.choice(THINGS)}"
    start = f"The code of the {thing} is "
    return f"{start}{value}. The code of the {thing} is", len(start)


def _changed(alphabet: str, encoder: Encoder, generator: random.Random) -> Passage | None:
    value = _code(alphabet, generator)
    context, _ = _statement(value, generator)
    at = generator.randrange(LENGTH)
    other = generator.choice([each for each in alphabet if each not in value])
    wrong = f"{value[:at]}{other}{value[at + 1 :]}"
    return encoder.choice(context, f" {value}", f" {wrong}", generator)


def _swapped(
    alphabet: str, encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    value = _code(alphabet, generator)
    context, start = _statement(value, generator)
    at = generator.randrange(LENGTH - 1)
    wrong = f"{value[:at]}{value[at + 1]}{value[at]}{value[at + 2 :]}"
    pair = (start + at, start + at + 1)
    return encoder.choice(
        context, f" {value}", f" {wrong}", generator, pair=pair, placement=placement
    )


def one_digit(encoder: Encoder, generator: random.Random, _: Placement | None) -> Passage | None:
    """Draw a number against the same with one digit changed."""
    return _changed(DIGITS, encoder, generator)


def one_letter(encoder: Encoder, generator: random.Random, _: Placement | None) -> Passage | None:
    """Draw a word of letters against the same with one letter changed."""
    return _changed(CONSONANTS, encoder, generator)


def digit_order(
    encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    """Draw a number against the same with two neighbours swapped."""
    return _swapped(DIGITS, encoder, generator, placement)


def letter_order(
    encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    """Draw a word of letters against the same with two neighbours swapped."""
    return _swapped(CONSONANTS, encoder, generator, placement)


def date_order(
    encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    """Draw a date against the same with day and month swapped."""
    month, day = generator.sample("23456789", 2)
    year = generator.randrange(1950, 2030)
    name = generator.choice(NAMES)
    start = f"{name} came on {year}-"
    context = f"{start}{month}-{day}. The day when {name} came is"
    return encoder.choice(
        context,
        f" {year}-{month}-{day}",
        f" {year}-{day}-{month}",
        generator,
        pair=(len(start), len(start) + 2),
        placement=placement,
    )


def roles(
    encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    """Draw who did something against whom it was done to."""
    doer, other = generator.sample(NAMES, 2)
    deed = generator.choice(DEEDS)
    context = f"{doer} {deed} {other}. The one who {deed} {other} was"
    pair = (0, len(f"{doer} {deed} "))
    return encoder.choice(
        context, f" {doer}", f" {other}", generator, pair=pair, placement=placement
    )


def key_value(
    encoder: Encoder, generator: random.Random, placement: Placement | None
) -> Passage | None:
    """Draw the value of one of four keys against that of another."""
    keys, values = generator.sample(NAMES, 4), generator.sample(DIGITS, 4)
    asked, other = generator.sample(range(4), 2)
    entries = [f"{key} {value}" for key, value in zip(keys, values, strict=True)]
    context = f"{', '.join(entries)}. {keys[asked]}"
    value_at = len(", ".join(entries[: asked + 1])) - 1
    return encoder.choice(
        context,
        f" {values[asked]}",
        f" {values[other]}",
        generator,
        pair=(value_at - 2, value_at),
        placement=placement,
    )


TASKS = (
    Task(name="one digit", group=GROUP, aim="a number against one changed digit", draw=one_digit),
    Task(name="one letter", group=GROUP, aim="a code against one changed letter", draw=one_letter),
    Task(
        name="digit order",
        group=GROUP,
        aim="a number against two swapped digits",
        draw=digit_order,
        is_placed=True,
    ),
    Task(
        name="letter order",
        group=GROUP,
        aim="a code against two swapped letters",
        draw=letter_order,
        is_placed=True,
    ),
    Task(
        name="date order",
        group=GROUP,
        aim="a date against day and month swapped",
        draw=date_order,
        is_placed=True,
    ),
    Task(name="roles", group=GROUP, aim="who did it against to whom", draw=roles, is_placed=True),
    Task(
        name="key and value",
        group=GROUP,
        aim="the value of a key against that of another",
        draw=key_value,
        is_placed=True,
    ),
)
