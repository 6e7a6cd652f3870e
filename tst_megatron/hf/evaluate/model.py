"""lm-eval's model of transformers, which is given texts as training was."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer
from tst_megatron.hf.evaluate.requests import Texts


class DocumentModel(HFLM):  # type: ignore[misc, unused-ignore]
    """Its input begins as a document of the training text: BOS by the template, never EOS.

    HFLM of lm-eval 0.4.13 takes the EOS of a template into the middle of a text. It leaves BOS out
    where a text spells it. It puts BOS twice before a text whose full likelihood is asked, and once
    before an answer without a question where the template adds none. It counts the tokens of a
    context alone, also where one of them continues into the answer. For removal when it does none
    of these.
    """

    def __init__(self, documents: HuggingFaceTokenizer, **options: Any) -> None:
        """Load a model.

        Args:
            documents: its tokenizer, as text was prepared with it.
            options: HFLM's own.
        """
        self._texts = Texts(documents)
        super().__init__(prefix_token_id=self._texts.before_a_document, **options)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """The ids of a text without BOS, which is added where a context is made of it."""
        ids = self._texts.ids(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = self._texts.pair(context, continuation)
        return self._context(before), after

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the ids of prompts to continue, padded, and a mask of what is not padding."""
        ids = [self._context(self.tok_encode(string)) for string in strings]
        if left_truncate_len:
            ids = [prompt[-left_truncate_len:] for prompt in ids]
        padded = self.tokenizer.pad(
            {"input_ids": ids}, padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]

    def _context(self, ids: list[int]) -> list[int]:
        """Return the ids that the model reads before it is asked for more; at least one."""
        return [*self._texts.bos, *ids] or [self.prefix_token_id]
