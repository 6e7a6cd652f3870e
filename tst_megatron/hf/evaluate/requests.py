"""Turn what lm-eval asks of a model into tokens, and find what no model can be asked."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend  # type: ignore[import-untyped, unused-ignore]

from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer

MAX_GENERATED = 256
"""Tokens that lm-eval 0.4.13 generates where a task does not say how many."""


class Texts:
    """The tokens of contexts and answers, as they stand in documents."""

    def __init__(self, documents: HuggingFaceTokenizer) -> None:
        """Take a tokenizer, as text was prepared with it."""
        self._documents = documents
        bos_id = documents.facts.bos_id
        self.bos = [] if bos_id is None else [bos_id]
        self.before_a_document = documents.facts.eod_id if bos_id is None else bos_id
        """BOS. Without one, what stands before a document in training is the EOD of another."""
        # The answers to one question come one after the other.
        self._ids_of_context = functools.lru_cache(maxsize=4)(self.ids)

    def ids(self, text: str) -> list[int]:
        """The ids of a text without BOS, which is added where a context is made of it."""
        return self._documents.beginning(text)[len(self.bos) :]

    def pair(self, context: str, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a context and its answer, encoded together and parted before the answer.

        The answer has each token with a character of it, also of one that a token shares with the
        context; spaces at the end of the context count as the answer's, as lm-eval has it.

        Returns:
            The context's, without BOS, and the answer's; either may have none.
        """
        before = context.rstrip()
        whole, own = self.ids(context + answer), self._ids_of_context(before)
        # So it is with usual tokenizers, which part texts in front of spaces.
        if len(own) < len(whole) and whole[: len(own)] == own:
            return own, whole[len(own) :]
        ends = [
            end for _, end in self._spans.encode(context + answer, add_special_tokens=False).offsets
        ]
        first = next((i for i, end in enumerate(ends) if end > len(before)), len(ends))
        return whole[:first], whole[first:]

    @functools.cached_property
    def _spans(self) -> Any:
        """The tokenizer for the characters of each token alone."""
        form = json.loads(self._documents.serialized)
        # It adds BOS and EOS, and cuts spaces off the characters that it says a token has.
        form["post_processor"] = None
        backend = Backend.from_str(json.dumps(form))
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not self._documents.facts.special_tokens_in_text
        return backend


def build(tasks: Iterable[Any], limit: int | None) -> None:
    """Let lm-eval write the requests of its tasks now, and not again when they are run."""
    for task in tasks:
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        # A second time takes as long, and would draw other examples for the prompts.
        task.build_all_requests = lambda **_: None


def check(tasks: Mapping[str, Any], texts: Texts, num_positions: int) -> None:
    """Refuse tasks with requests that lm-eval could not finish, before a model is loaded.

    Args:
        tasks: lm-eval's, with their requests built.
        texts: what makes tokens of them.
        num_positions: what the model reads at most.

    Raises:
        ValueError: with each such task, how many of its requests, and the first of them.
    """
    problems = []
    for name, task in tasks.items():
        found = [
            (request.doc_id, problem)
            for request in task.instances
            if (problem := _problem(request, texts, num_positions))
        ]
        if found:
            item, problem = found[0]
            problems.append(
                f"  {name}: {len(found):,} of {len(task.instances):,}, the first for item {item}: "
                f"{problem}"
            )
    if problems:
        raise ValueError(
            "\n".join(
                [
                    "some requests of these tasks cannot be put to this model:",
                    *problems,
                    "Leave the tasks out of --tasks, or, where items have faults, correct them.",
                ]
            )
        )


def _problem(request: Any, texts: Texts, num_positions: int) -> str | None:
    if request.request_type == "generate_until":
        return _generation_problem(request.args[1], num_positions)
    if request.request_type != "loglikelihood":
        return None
    context, answer = request.args
    # lm-eval takes what begins documents for the context, also where an answer spells it.
    ids = texts.pair(context, answer)[1] if context else texts.ids(answer)
    if not context and ids[:1] == [texts.before_a_document]:
        ids = ids[1:]
    if not ids:
        return f"its answer {answer!r} has no tokens, so none that has a likelihood"
    if len(ids) > num_positions:
        return f"its answer has {len(ids):,} tokens, and the model has {num_positions:,} positions"
    return None


def _generation_problem(options: dict[str, Any], num_positions: int) -> str | None:
    from lm_eval.models.utils import normalize_gen_kwargs

    wanted = normalize_gen_kwargs(options, MAX_GENERATED)["max_gen_toks"]
    if wanted < num_positions:
        return None
    return (
        f"it generates up to {wanted:,} tokens, and the model has {num_positions:,} positions for "
        "them and for the prompt"
    )
