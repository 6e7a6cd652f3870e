"""GPTModel with two rooms exchanged: its word embeddings take bags, its loss takes bags of targets.

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
    """The same for two copies of one table, on the first and on the last pipeline stage."""
    weight: Parameter
    """[P, H] this rank's rows."""
    initialise: Callable[[Tensor], Any]
    """Fills a table with new values, in place."""


class TokenSuperposition(LanguageModule):
    """What token superposition adds to a language model, whichever decoder it has.

    A mixin over ``LanguageModule`` and not over ``GPTModel``, which upstream means to replace by
    ``HybridModel``.
    """

    slot_weights: SlotWeights = "uniform"
    """How the slots of a bag of targets are weighted (``tst.slot-weights``)."""
    linear_cross_entropy: bool = False
    """Whether the loss of bags is computed with the output layer (``tst.linear-cross-entropy``)."""

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Loss per position: Megatron's own for labels [B, L], multi-hot for bags [B, L, K].

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
            # The output layer keeps its inputs for the backward pass, and nothing reads its output.
            may_overwrite_logits=True,
        )
        return loss_LB.transpose(0, 1).contiguous()

    def output_processor(self, labels: Tensor | None) -> Callable[..., Tensor] | None:
        """What takes the place of output layer and loss, if anything does for these labels."""
        if not self.linear_cross_entropy or labels is None or labels.dim() == 2:
            return None
        return functools.partial(linear_loss, kind=self.slot_weights)

    def vocabulary_tables(self) -> list[VocabularyTable]:
        """The input embeddings and the output layer, as far as this pipeline stage holds them."""
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
    """A GPT that trains on tokens [B, L] as ``GPTModel`` does, and on bags [B, L, K]."""

    @classmethod
    def take_over(cls, model: GPTModel) -> TSTGPTModel:
        """Let an existing model accept bags, in place; weights and names stay as they are."""
        model.__class__ = cls
        assert isinstance(model, cls)
        if model.pre_process:
            BagEmbedding.take_over(model.embedding.word_embeddings)
        return model

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Arguments as in ``GPTModel``; labels may be bags."""
        processor = self.output_processor(labels)
        return super().forward(*args, labels=labels, output_processor=processor, **kwargs)

    def build_schedule_plan(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Arguments as in ``GPTModel``; labels may be bags."""
        kwargs["output_processor"] = self.output_processor(labels)
        return super().build_schedule_plan(*args, labels=labels, **kwargs)


class TSTGPTModelBuilder(GPTModelBuilder):
    """Builds what Megatron's builder builds, then exchanges the two rooms."""

    def build_model(self, *args: Any, **kwargs: Any) -> TSTGPTModel:
        """Build one pipeline stage; arguments as in Megatron's builder."""
        model = TSTGPTModel.take_over(super().build_model(*args, **kwargs))
        model.slot_weights = self._model_config.slot_weights
        model.linear_cross_entropy = self._model_config.linear_cross_entropy
        return model


@dataclass(kw_only=True)
class TSTGPTModelConfig(GPTModelConfig):
    """Megatron's GPT configuration, built by ``TSTGPTModelBuilder``."""

    builder: ClassVar[str] = "tst_megatron.model.gpt.TSTGPTModelBuilder"
    slot_weights: SlotWeights = "uniform"
    linear_cross_entropy: bool = False

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, tst: TSTConfig) -> TSTGPTModelConfig:
        """The configuration that Megatron's arguments and the recipe's ``tst:`` block mean."""
        config: TSTGPTModelConfig = gpt_config_from_args(args, model_config_cls=cls)
        config.slot_weights = tst.slot_weights
        config.linear_cross_entropy = tst.linear_cross_entropy
        return config
