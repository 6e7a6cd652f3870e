"""The model that trains: Megatron's GPT, whose word embeddings and loss also take bags of tokens.

``TSTGPTModel`` is Megatron's ``GPTModel`` with two parts exchanged. Token ids [B, L] take
Megatron's own path, unchanged. Bags [B, L, K] are averaged by ``BagEmbedding``, and bags of targets
get multi-hot cross-entropy. ``TSTGPTModelBuilder`` builds it where Megatron builds a model.

Shapes: B micro-batch, L latent positions, K tokens per bag (paper: s), P vocabulary columns on this
rank.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from tst_megatron.megatron.names import GPTModel, GPTModelBuilder, GPTModelConfig, LanguageModule
from tst_megatron.megatron.repairs.gpt_config import gpt_config_from_args
from tst_megatron.model.embedding import BagEmbedding
from tst_megatron.model.linear_loss import linear_loss
from tst_megatron.model.loss import slot_weights, vocab_parallel_multi_hot_cross_entropy
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import SlotWeights


class VocabularyTable(NamedTuple):
    """A table with a row for each token of the vocabulary."""

    name: str
    """Two copies of one table, on the first and on the last pipeline stage, have the same name."""
    weight: Parameter
    """This rank's rows, [P, H]."""
    initialise: Callable[[Tensor], Any]
    """Function that fills a table with new values, in place."""


class TokenSuperposition(LanguageModule):
    """The loss of bags, as a mixin for any of Megatron's language models.

    It extends ``LanguageModule`` and not ``GPTModel``, because upstream plans to replace
    ``GPTModel`` by ``HybridModel``.
    """

    slot_weights: SlotWeights = "uniform"
    """Weighting of the slots of a bag of targets (``tst.slot-weights``)."""
    linear_cross_entropy: bool = False
    """Compute the loss of bags together with the output layer (``tst.linear-cross-entropy``)."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the loss per position: Megatron's for labels [B, L], multi-hot for bags.

        Args:
            labels: [B, L] next tokens, or [B, L, K] next bags with -100 in ignored slots.
            logits: [L, B, P].

        Returns:
            [B, L] loss in nats.
        """
        if labels.dim() == 2:
            return super().compute_language_model_loss(labels, logits)
        loss_LB = vocab_parallel_multi_hot_cross_entropy(
            logits,
            labels.transpose(0, 1),
            tp_group=self.tp_group,
            slot_weights=slot_weights(self.slot_weights, labels.shape[-1], device=labels.device),
            # Nothing else reads the logits: the output layer keeps only its input for backward.
            may_overwrite_logits=True,
        )
        return loss_LB.transpose(0, 1).contiguous()

    def output_processor(self, labels: Tensor | None) -> Callable[..., Tensor] | None:
        """Return the function that GPTModel calls instead of output layer and loss, or None.

        It is the linear cross-entropy of bags, where the recipe asks for it and labels are bags.
        """
        if not self.linear_cross_entropy or labels is None or labels.dim() == 2:
            return None
        return functools.partial(linear_loss, kind=self.slot_weights)

    def vocabulary_tables(self) -> list[VocabularyTable]:
        """List the input embeddings and the output layer, if this pipeline stage has them."""
        config, is_tied = self.config, self.share_embeddings_and_output_weights
        tables = []
        if self.pre_process:
            weight = self.embedding.word_embeddings.weight
            tables.append(VocabularyTable("embeddings", weight, config.embedding_init_method))
        if self.post_process and is_tied and not self.pre_process:
            # This stage's copy of the first stage's table.
            weight = self.output_layer.weight
            tables.append(VocabularyTable("embeddings", weight, config.embedding_init_method))
        if self.post_process and not is_tied:
            # As GPTModel initialises it.
            initialise = config.embedding_init_method if config.use_mup else config.init_method
            tables.append(VocabularyTable("output layer", self.output_layer.weight, initialise))
        return tables


class TSTGPTModel(TokenSuperposition, GPTModel):
    """Megatron's GPT, which trains on tokens [B, L] and also on bags [B, L, K]."""

    @classmethod
    def take_over(cls, model: GPTModel) -> TSTGPTModel:
        """Let an existing model accept bags, in place; weights and names stay as they are."""
        model.__class__ = cls
        assert isinstance(model, cls)
        if model.pre_process:
            BagEmbedding.take_over(model.embedding.word_embeddings)
        return model

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compute the loss or the logits; arguments as in ``GPTModel``, labels may be bags."""
        processor = self.output_processor(labels)
        return super().forward(*args, labels=labels, output_processor=processor, **kwargs)

    def build_schedule_plan(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Return the computation of ``forward`` as a plan that Megatron runs piece by piece."""
        kwargs["output_processor"] = self.output_processor(labels)
        return super().build_schedule_plan(*args, labels=labels, **kwargs)


class TSTGPTModelBuilder(GPTModelBuilder):
    """Megatron's builder of GPT models, which afterwards exchanges the two parts."""

    def build_model(self, *args: Any, **kwargs: Any) -> TSTGPTModel:
        """Build one pipeline stage; arguments as in Megatron's builder."""
        model = TSTGPTModel.take_over(super().build_model(*args, **kwargs))
        model.slot_weights = self._model_config.slot_weights
        model.linear_cross_entropy = self._model_config.linear_cross_entropy
        return model


@dataclass(kw_only=True)
class TSTGPTModelConfig(GPTModelConfig):
    """Megatron's GPT configuration, from which ``TSTGPTModelBuilder`` builds."""

    # Checkpoints name this path: the class must stay importable there.
    builder: ClassVar[str] = "tst_megatron.model.gpt.TSTGPTModelBuilder"
    slot_weights: SlotWeights = "uniform"
    linear_cross_entropy: bool = False

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, tst: TSTConfig) -> TSTGPTModelConfig:
        """Return the configuration of Megatron's arguments and the recipe's ``tst:`` block."""
        config: TSTGPTModelConfig = gpt_config_from_args(args, model_config_cls=cls)
        config.slot_weights = tst.slot_weights
        config.linear_cross_entropy = tst.linear_cross_entropy
        return config
