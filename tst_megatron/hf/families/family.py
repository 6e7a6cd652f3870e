"""Translate between Megatron's arguments and the config.json of a model family, both ways.

The families differ in little, so each is one small file with a ``Family``: the arguments that it
can express, its part of config.json, and the table of its weights. What they share is here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tst_megatron.hf.families.weight_table import Rule, common_sizes

if TYPE_CHECKING:
    # `check` asks for refusals before anything slow is imported.
    import torch

_ABSENT = object()

# Settings that every family here has in one form only. One that a checkpoint does not know is
# neutral.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "add_qkv_bias": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (0.0,),
    "qk_l2_norm": (False,),
    "multi_latent_attention": (False,),
    "attention_output_gate": (False,),
    "softmax_type": ("vanilla",),
    "window_size": (None,),
    "no_rope_freq": (None,),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None,),
    "use_mup": (False,),
    "mtp_num_layers": (None, 0),
    "experimental_attention_variant": (None,),
}
# Settings without which it is another family; they must be there.
_NEEDED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
}
_KEYS = {
    "add_bias_linear": "disable-bias-linear",
    "layernorm_zero_centered_gamma": "apply-layernorm-1p",
}
"""Recipe keys that are not spelled as Megatron's argument is."""
OPPOSITE = {"add_bias_linear"}
"""Arguments that are true where their key is false."""
_LONGEST_VALUE = 60
"""Characters of a setting that a message shows: a pattern of layers can have thousands."""
# What a config.json may say of parts that Megatron's models here do not have.
_WITHOUT: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model family of Hugging Face's."""

    name: str
    architecture: str
    model_type: str
    fixed: Mapping[str, tuple[Any, ...]]
    """Megatron's arguments that it has in one form only, beside those that all families share."""
    problems: Callable[[argparse.Namespace], list[str]]
    """Lists what else of Megatron's arguments it cannot express."""
    config: Callable[[argparse.Namespace], dict[str, Any]]
    """Returns the keys of its config.json that not all families have."""
    flags: Callable[[Mapping[str, Any], list[str]], dict[str, Any]]
    """Megatron's keys for that part of a config.json; adds to the problems given."""
    rules: Callable[[Mapping[str, Any]], Iterator[Rule]]
    """The table of its weights for a config.json, in the order in which an export writes them."""
    sizes: Callable[[Mapping[str, Any]], dict[str, int]] = common_sizes
    """The numbers behind the names in ``Rule.sizes``."""

    def settings(self) -> tuple[str, ...]:
        """List Megatron's arguments that decide whether a model is of this family."""
        return (*_NEEDED, *_FIXED, *self.fixed)

    def misfits(self, args: argparse.Namespace) -> list[str]:
        """List every setting of a model that this family cannot express, in a recipe's words.

        Args:
            args: Megatron's arguments: of a recipe, or as saved in a checkpoint.
        """
        found = [
            _must_be(args, name, allowed)
            for name, allowed in _NEEDED.items()
            if getattr(args, name, None) not in allowed
        ]
        for name, allowed in {**_FIXED, **self.fixed}.items():
            if name == "add_qkv_bias" and getattr(args, "add_bias_linear", False):
                # Megatron's validation sets it with the other, which is the one to change.
                continue
            if getattr(args, name, _ABSENT) not in (_ABSENT, *allowed):
                found.append(_must_be(args, name, allowed))
        return found + self.problems(args)

    def check(self, args: argparse.Namespace) -> None:
        """Refuse a model that this family cannot express, with every reason at once.

        Args:
            args: Megatron's arguments as saved in a checkpoint.

        Raises:
            ValueError: some setting has no counterpart in this family.
        """
        if found := self.misfits(args):
            raise ValueError(
                f"The model has no {self.name} form: {'; '.join(found)}. "
                "Train with the settings named."
            )

    def config_from_args(
        self,
        args: argparse.Namespace,
        *,
        vocab_size: int | None = None,
        dtype: torch.dtype | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
    ) -> dict[str, Any]:
        """Return the complete config.json of a model, from the arguments that trained it.

        Args:
            args: Megatron's arguments as saved in a checkpoint.
            vocab_size: rows of the embedding without padding; the saved vocabulary size when not
                given.
            dtype: type of the exported weights; the type they were trained in when not given.
            bos_token_id: the tokenizer's, if it has one.
            eos_token_id: the tokenizer's, if it has one.

        Raises:
            ValueError: the model has no form in this family, or the vocabulary is larger than the
                embedding.
        """
        self.check(args)
        vocab_size = vocab_size or getattr(args, "vocab_size", None) or args.padded_vocab_size
        if vocab_size > args.padded_vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size}: the model has only {args.padded_vocab_size} rows of "
                "embedding. Give the tokenizer that the model was trained with."
            )
        heads = args.num_attention_heads
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "hidden_size": args.hidden_size,
            "num_hidden_layers": args.num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": args.num_query_groups if args.group_query_attention else heads,
            "head_dim": args.kv_channels,
            "intermediate_size": args.ffn_hidden_size,
            "hidden_act": "silu",
            "rms_norm_eps": args.layernorm_epsilon,
            "attention_bias": False,
            "attention_dropout": args.attention_dropout,
            "max_position_embeddings": args.max_position_embeddings,
            "rope_theta": float(args.rotary_base),
            "rope_scaling": None,
            "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
            "initializer_range": args.init_method_std,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "torch_dtype": str(dtype or args.params_dtype).removeprefix("torch."),
            "use_cache": True,
            **self.config(args),
        }

    def flags_from_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return Megatron's keys for a model, as a recipe has them, from its config.json.

        Args:
            config: complete, as transformers' configuration class fills it.

        Raises:
            ValueError: the model has a part that Megatron's model here does not have; all of them.
        """
        found = parts_without_form(config)
        rope = dict(config.get("rope_parameters") or {})
        theta = rope.get("rope_theta", config.get("rope_theta"))
        if theta is None or float(theta) != int(theta):
            found.append(f"rope_theta={theta!r} (Megatron's rotary-base is a whole number)")
        special = self.flags(config, found)
        if "use-rope-scaling" not in special and rope.get("rope_type", "default") != "default":
            found.append(f"rope_type={rope['rope_type']!r} (must be 'default')")
        if found:
            raise ValueError(
                f"this model has no Megatron form: {'; '.join(found)}. Only {self.name} models "
                "without these parts can be imported."
            )
        heads = config["num_attention_heads"]
        return {
            "num-layers": config["num_hidden_layers"],
            "hidden-size": config["hidden_size"],
            "num-attention-heads": heads,
            "group-query-attention": True,
            "num-query-groups": config["num_key_value_heads"],
            "kv-channels": config.get("head_dim") or config["hidden_size"] // heads,
            "ffn-hidden-size": config["intermediate_size"],
            "swiglu": True,
            "disable-bias-linear": True,
            "normalization": "RMSNorm",
            "norm-epsilon": config["rms_norm_eps"],
            "position-embedding-type": "rope",
            "rotary-base": int(float(theta)),  # type: ignore[arg-type]
            "untie-embeddings-and-output-weights": not config["tie_word_embeddings"],
            "max-position-embeddings": config["max_position_embeddings"],
            "init-method-std": config["initializer_range"],
            "vocab-size": config["vocab_size"],
            "hidden-dropout": 0.0,
            "attention-dropout": float(config.get("attention_dropout") or 0.0),
            **special,
        }


def parts_without_form(config: Mapping[str, Any]) -> list[str]:
    """List what a configuration has that no Megatron model here can have.

    Args:
        config: a config.json, complete or not.
    """
    return [
        f"{key}={config[key]!r} (must be {' or '.join(repr(value) for value in allowed)})"
        for key, allowed in _WITHOUT.items()
        if key in config and config[key] not in allowed
    ]


def _must_be(args: argparse.Namespace, name: str, allowed: Sequence[Any]) -> str:
    values = [getattr(args, name, None), *allowed]
    if name in OPPOSITE:
        values = [not value for value in values]
    actual, *wanted = map(shown, values)
    return f"{recipe_key(name)} is {actual} (must be {' or '.join(wanted)})"


def recipe_key(name: str) -> str:
    """Return the key of a recipe by which one of Megatron's arguments is set."""
    return _KEYS.get(name, name.replace("_", "-"))


def shown(value: Any) -> str:
    """Spell a setting as a recipe does, cut where it is long."""
    if value is None:
        return "not set"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def only_full_attention(config: Mapping[str, Any], problems: list[str]) -> None:
    """Add a problem where some layers attend to a window only.

    Args:
        config: a config.json.
        problems: is added to.
    """
    kinds = sorted(set(config.get("layer_types") or []) - {"full_attention"})
    if kinds:
        problems.append(f"layer_types has {', '.join(kinds)} (must be full_attention alone)")
