"""Measure what one layer of each kind keeps for its backward pass, and what it works on.

Each is run forward and backward on the CPU at two small sizes (``layers_alone.py``). What autograd
keeps is told by its own hooks, storage by storage. What lives at once is told after each operation
(``living.py``). Both are linear in the positions, and in their square where attention keeps scores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.model import linear_loss, loss, loss_steps
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.plan.memory import layers_alone
from tst_megatron.plan.memory.living import Living
from tst_megatron.recipe.tst_config import TSTConfig

LENGTH = 8
"""Positions of the smaller size, for each tensor-parallel rank; the other is twice as long."""
EXPERTS, ACTIVATIONS = "experts", "activations of experts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Bytes as a function of the positions of a micro-batch."""

    constant: float
    per_position: float
    per_square: float
    """By length x length x sequences: scores."""

    def at(self, length: int, batch: int) -> float:
        """Return the bytes of a micro-batch of some sequences of a length."""
        return self.constant + batch * length * (self.per_position + length * self.per_square)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What one layer, the embedding, or the output layer with its loss needs."""

    kept: Growth
    """For the backward pass, but for what the next two fields have; weights do not count."""
    kept_by_experts: Growth
    """By the matrix products of experts for the positions that are routed to them."""
    kept_activations_of_experts: Growth
    """The input of their second product, which recompute of ``moe_act`` does not keep."""
    peaks: tuple[Growth, ...]
    """What lives at the moments that may be the fullest, forward or backward, gradients included.
    Small sizes are fullest where a weight has its gradient, and large ones elsewhere."""

    def peak(self, length: int, batch: int) -> float:
        """Return the most bytes that live at once for a micro-batch."""
        return max(each.at(length, batch) for each in self.peaks)


def measure_layers(args: argparse.Namespace, tst: TSTConfig, bag_sizes: list[int]) -> str:
    """Measure the layers of a job, in this forked process, and return them as JSON.

    Args:
        args: validated for the job.
        tst: the recipe's block.
        bag_sizes: for which embedding and loss are measured.
    """
    is_fused = args.transformer_impl != "local"
    if is_fused or _num_logits(args) > loss_steps.BLOCK_LOGITS:
        _work_in_place()
    alone = layers_alone.arguments_of_layers(args, is_fused=is_fused)
    with transformer_engine_of_the_job():
        model_config = TSTGPTModelConfig.from_arguments(alone, tst)
    model = layers_alone.build_layers(alone, model_config, is_fused=is_fused)
    bench = _Bench(alone, model, has_scores=not is_fused)
    kinds = layers_alone.kinds_of_layers(args)
    layers = list(model.decoder.layers)
    found = {
        kind: bench.measure(bench.layer(each)) for kind, each in zip(kinds, layers, strict=True)
    }
    # Without layers the rest of the model is the final norm, the output layer and the loss.
    model.decoder.layers = torch.nn.ModuleList()
    for bag_size in bag_sizes:
        found[f"embedding, K={bag_size}"] = bench.measure(bench.embedding(bag_size))
        found[f"loss, K={bag_size}"] = bench.measure(bench.loss(bag_size))
    return json.dumps({name: dataclasses.asdict(layer) for name, layer in found.items()})


def _num_logits(args: argparse.Namespace) -> int:
    positions = args.micro_batch_size * args.seq_length
    return int(positions * args.padded_vocab_size // args.tensor_model_parallel_size)


def _work_in_place() -> None:
    """Let the loss of bags read logits and write gradients without copies, as its kernels do.

    Its code for the CPU copies a block at a time, which is small beside many logits, and is all of
    them here.
    """
    for module in (loss, linear_loss):
        module.statistics = _no_statistics  # type: ignore[attr-defined]
        module.write_gradient = _no_gradient  # type: ignore[attr-defined]


def _no_statistics(logits_NP: Tensor, *_: Any, **__: Any) -> Tensor:
    return logits_NP.new_zeros((1, logits_NP.shape[0], 4), dtype=torch.float32)


def _no_gradient(gradient_NP: Tensor, *_: Any, **__: Any) -> None:
    gradient_NP.zero_()


def layers_of(said: str) -> dict[str, Layer]:
    """Read what ``measure_layers`` returned."""
    return {name: _layer(**layer) for name, layer in json.loads(said).items()}


def _layer(peaks: list[dict[str, float]], **kept: dict[str, float]) -> Layer:
    grown = {name: Growth(**growth) for name, growth in kept.items()}
    return Layer(peaks=tuple(Growth(**each) for each in peaks), **grown)


Run = Callable[[int, int], Tensor]
"""Runs a part of the model forward on sequences of a length: (length, sequences) -> output."""


@dataclass(frozen=True, slots=True)
class _Bench:
    args: argparse.Namespace
    model: Any
    has_scores: bool

    def layer(self, layer: Any) -> Run:
        def run(length: int, batch: int) -> Tensor:
            states = layers_alone.hidden_states(self.args, length, batch)
            output, _ = layer(
                hidden_states=states, attention_mask=None, rotary_pos_emb=self._angles(length)
            )
            return output  # type: ignore[no-any-return]

        return run

    def embedding(self, bag_size: int) -> Run:
        def run(length: int, batch: int) -> Tensor:
            tokens, positions = _tokens(length, batch, bag_size)
            return self.model.embedding(input_ids=tokens, position_ids=positions)  # type: ignore[no-any-return]

        return run

    def loss(self, bag_size: int) -> Run:
        def run(length: int, batch: int) -> Tensor:
            tokens, positions = _tokens(length, batch, bag_size)
            states = layers_alone.hidden_states(self.args, length, batch)
            return self.model(  # type: ignore[no-any-return]
                tokens, positions, None, decoder_input=states, labels=tokens
            )

        return run

    def _angles(self, length: int) -> Tensor | None:
        rope = getattr(self.model, "rotary_pos_emb", None)
        return None if rope is None or self.args.multi_latent_attention else rope(length)

    def measure(self, run: Run) -> Layer:
        """Measure a part at two lengths, or at three where scores are kept."""
        length = LENGTH * self.args.tensor_model_parallel_size
        # One sequence needs other copies than several do.
        batch = min(2, self.args.micro_batch_size)
        sizes = [(length * times, batch) for times in range(1, 4 if self.has_scores else 3)]
        # What a first run makes for all that follow, as the angles of a length, is not counted.
        self._once(run, *sizes[0])
        for size in sizes[1:]:
            run(*size)
        kept, lives = zip(*(self._once(run, *size) for size in sizes), strict=True)
        # The same computation has the same operations, whatever the size.
        numbers = [len(each) for each in lives]
        assert len(set(numbers)) == 1, f"{numbers} operations at {sizes} positions"
        moments = {_growth(length, batch, values) for values in zip(*lives, strict=True)}
        return Layer(
            **{name: _growth(length, batch, [each[name] for each in kept]) for name in kept[0]},
            peaks=_fullest(moments),
        )

    def _once(self, run: Run, length: int, batch: int) -> tuple[dict[str, int], list[int]]:
        """Run a part once: (bytes that it keeps, bytes that live after each operation)."""
        kept: dict[str, dict[int, Any]] = {"": {}, EXPERTS: {}, ACTIVATIONS: {}}
        weights = {each.untyped_storage()._cdata for each in self.model.parameters()}
        with _place_in(self.model) as place, Living() as living:

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                known = any(storage._cdata in storages for storages in kept.values())
                if not known and storage._cdata not in weights:
                    kept[place()][storage._cdata] = storage
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = run(length, batch)
            # Recompute empties storages at the end of the forward pass.
            sizes = {
                name: sum(storage.nbytes() for storage in storages.values())
                for name, storages in kept.items()
            }
            kept = {}
            living.emptied()
            edge = torch.autograd.graph.get_gradient_edge(output)
            gradient = torch.zeros_like(output)
            # The next layer keeps this output, as its input.
            del output
            torch.autograd.backward([edge], [gradient])
        named = {
            "kept": sizes[""],
            "kept_by_experts": sizes[EXPERTS],
            "kept_activations_of_experts": sizes[ACTIVATIONS],
        }
        return named, living.moments


def _tokens(length: int, batch: int, bag_size: int) -> tuple[Tensor, Tensor]:
    shape = (batch, length) if bag_size == 1 else (batch, length, bag_size)
    return torch.zeros(shape, dtype=torch.int64), torch.arange(length).expand(batch, -1)


def _growth(length: int, batch: int, values: Sequence[int]) -> Growth:
    """Return the growth through values at a length, twice that, and perhaps three times that."""
    one, two, *three = values
    square = (three[0] - 2 * two + one) / 2 if three else 0.0
    linear = two - one - 3 * square
    return Growth(
        constant=one - linear - square,
        per_position=linear / (batch * length),
        per_square=square / (batch * length**2),
    )


@contextmanager
def _place_in(model: Any) -> Iterator[Callable[[], str]]:
    """Tell where in a model its forward pass is: in the experts, or in their second product."""
    places: list[str] = [""]
    handles = []
    for name, module in model.named_modules():
        place = ""
        if ".experts" in name:
            place = ACTIVATIONS if name.endswith("linear_fc2") else EXPERTS
            if place == EXPERTS and not name.endswith(".experts"):
                continue
        else:
            continue
        handles += [
            module.register_forward_pre_hook(lambda *_, place=place: places.append(place)),
            module.register_forward_hook(lambda *_: places.pop() and None),
        ]
    try:
        yield lambda: places[-1]
    finally:
        for handle in handles:
            handle.remove()


def _fullest(moments: set[Growth]) -> tuple[Growth, ...]:
    """Return those of all moments that are the fullest for some size of micro-batch."""
    found = {
        max(moments, key=lambda each: each.at(length, batch))
        for length in (2**power for power in range(4, 21))
        for batch in (1, 16)
    }
    return tuple(found)
