"""Put all suites and probes of an audit together."""

from __future__ import annotations

from collections.abc import Sequence

from tst_megatron.audit.items import Catalogue, LeftOut
from tst_megatron.audit.probes import forms, pairs
from tst_megatron.audit.probes.calibration import calibration, confidence_without_answer
from tst_megatron.audit.probes.choices import choices
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.audit.probes.natural import natural
from tst_megatron.audit.probes.order import order
from tst_megatron.audit.probes.random_tokens import copying, induction_tasks

VERSION = 1
"""Of the items: rises when the same seed would give others."""


def make_catalogue(
    documents: Sequence[str],
    encoder: Encoder,
    *,
    num_items: int,
    max_tokens: int,
    seed: int,
) -> Catalogue:
    """Make everything that is asked.

    Args:
        documents: held-out text; none leaves out the probes that need it.
        encoder: of the models' tokenizer.
        num_items: of each generated probe.
        max_tokens: of held-out text.
        seed: of all that is drawn.

    Raises:
        ValueError: the text is too short.
    """
    found = Catalogue()
    if documents:
        made, labels = natural(documents, encoder, max_tokens=max_tokens, seed=seed)
        (text,) = made.suites
        found.add(made)
        bag_size = encoder.bag_size
        found.add(order(text, labels, bag_size=bag_size, num_items=num_items, seed=seed))
    else:
        found.left_out.append(
            LeftOut(
                name="all probes on natural text",
                reason="no held-out text was given. Name some with --text",
            )
        )
    found.add(copying(encoder, num_items=num_items, seed=seed))
    tasks = [*induction_tasks(encoder), *pairs.TASKS, *forms.TASKS]
    found.add(choices(tasks, encoder, num_items=num_items, seed=seed))
    if documents:
        found.add(calibration(labels))
    found.add(confidence_without_answer(encoder, num_items=num_items, seed=seed))
    return found
