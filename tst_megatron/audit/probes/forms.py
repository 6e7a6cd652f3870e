"""Small constraints in records like those of a form, grammar, and questions without an answer."""

from __future__ import annotations

import random

from tst_megatron.audit.items import Passage
from tst_megatron.audit.probes.choices import Task
from tst_megatron.audit.probes.encoding import Encoder, Placement
from tst_megatron.audit.probes.pairs import COLOURS, NAMES, THINGS

SIZES = "big small long short wide thin".split()
NOUNS = (
    ("dog", "dogs"),
    ("house", "houses"),
    ("tree", "trees"),
    ("boy", "boys"),
    ("girl", "girls"),
    ("car", "cars"),
    ("bird", "birds"),
    ("horse", "horses"),
    ("king", "kings"),
    ("book", "books"),
)
NEAR = "near behind under beside with by".split()
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
GROUP = "Records and grammar"


def binding(encoder: Encoder, generator: random.Random, _: Placement | None) -> Passage | None:
    """Draw a field of one record against the same field of the other."""
    names = generator.sample(NAMES, 2)
    colours, sizes = generator.sample(COLOURS, 2), generator.sample(SIZES, 2)
    records = [
        f"Name: {name}\nColour: {colour}\nSize: {size}\n"
        for name, colour, size in zip(names, colours, sizes, strict=True)
    ]
    asked = generator.randrange(2)
    field, values = generator.choice((("Colour", colours), ("Size", sizes)))
    context = f"{''.join(records)}{field} of {names[asked]}:"
    return encoder.choice(context, f" {values[asked]}", f" {values[1 - asked]}", generator)


def constraint(encoder: Encoder, generator: random.Random, _: Placement | None) -> Passage | None:
    """Draw what a record allows against what it forbids."""
    good, bad = generator.sample(COLOURS, 2)
    thing = generator.choice(THINGS)
    rules = [f"Not: {bad}\n", f"Only: {good}\n"]
    generator.shuffle(rules)
    context = f"Thing: {thing}\n{''.join(rules)}Colour:"
    return encoder.choice(context, f" {good}", f" {bad}", generator)


def agreement(encoder: Encoder, generator: random.Random, _: Placement | None) -> Passage | None:
    """Draw a verb that agrees with its subject against one that agrees with a noun between."""
    subject, between = generator.sample(NOUNS, 2)
    number = generator.randrange(2)
    verb = generator.choice(VERBS)
    context = f"The {subject[number]} {generator.choice(NEAR)} the {between[1 - number]}"
    return encoder.choice(context, f" {verb[number]}", f" {verb[1 - number]}", generator)


def no_answer(encoder: Encoder, generator: random.Random) -> Passage | None:
    """Draw a question of which the context does not hold the answer."""
    *named, asked = generator.sample(NAMES, 4)
    values = generator.sample("0123456789", 4)
    entries = [f"{name} {value}" for name, value in zip(named, values, strict=False)]
    context = f"{', '.join(entries)}. The number of {asked} is"
    ids = encoder.encode(f"{context} {values[-1]}").ids
    whole = [*encoder.before, *ids]
    return encoder.passage(whole, [len(whole) - 1])


TASKS = (
    Task(
        name="record binding",
        group=GROUP,
        aim="a field of the record that is asked for against the other record's",
        draw=binding,
    ),
    Task(
        name="record constraint",
        group=GROUP,
        aim="what a record allows against what it forbids",
        draw=constraint,
    ),
    Task(
        name="agreement",
        group=GROUP,
        aim="a verb that agrees with its subject, not with the noun between",
        draw=agreement,
    ),
)
