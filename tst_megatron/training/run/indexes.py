"""Compare the text with its manifests, and build its indexes, once before a run reads.

One process does it, before the ranks meet, so that no collective's time-out runs meanwhile; the
others wait for the files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from tst_megatron.data.stream.corpora import Corpus, changed_text
from tst_megatron.data.stream.corpus_index import problem_of
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.stream.stream import ensure_indexes, index_facts
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.progress import document_progress

SECONDS_TO_BUILD = 4 * 3600.0
"""How long other ranks wait for indexes: far more than those of 2T tokens take."""


def make_ready(plan: StreamPlan, corpora: Sequence[Corpus], console: Console) -> int:
    """Compare the text with its manifests, and build what is missing of its indexes.

    Args:
        plan: of the run.
        corpora: of the plan, in its order.
        console: where progress goes, and a word on each index that was not whole.

    Returns:
        The number of indexes that were built.

    Raises:
        RecipeError: a file is not what its manifest recorded.
        OSError: an index cannot be written.
    """
    if problems := changed_text(corpora):
        raise RecipeError(problems)
    return build_indexes(plan, corpora, console)


def build_indexes(plan: StreamPlan, corpora: Sequence[Corpus], console: Console) -> int:
    """``make_ready`` of text that has been compared with its manifests already."""
    num_documents = sum(
        corpus.manifest.train.documents * plan.epochs_of(number)
        for number, corpus in enumerate(corpora)
    )

    def note(text: str) -> None:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    try:
        with document_progress(console, "indexing documents", num_documents) as advance:
            return ensure_indexes(plan, corpora, note=note, advance=advance)
    except ValueError as error:
        raise RecipeError([f"data: {error}"]) from error


def wait_until_ready(
    plan: StreamPlan, corpora: Sequence[Corpus], *, seconds: float = SECONDS_TO_BUILD
) -> None:
    """Wait for the first rank's ``build_indexes``: until every index stands under its name.

    Raises:
        RuntimeError: it did not happen in time.
    """
    deadline = time.monotonic() + seconds
    for number, corpus in enumerate(corpora):
        for epoch in range(plan.epochs_of(number)):
            facts = index_facts(plan, corpora, number, epoch)
            while problem := problem_of(corpus.cache / facts.name, facts):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{corpus.cache / facts.name}: {problem}, and rank 0 did not build it "
                        f"within {seconds:.0f} s. Is it on a file system that all nodes share?"
                    )
                time.sleep(0.2)
