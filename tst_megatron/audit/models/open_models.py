"""Open models in Hugging Face format, and refuse those that cannot be asked the same things."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer, load_hugging_face
from tst_megatron.hf.generate import load_in_transformers, positions
from tst_megatron.system.files import file_sha256

FEWEST_POSITIONS = 64
"""Of a context that every model has."""
MOST_POSITIONS = 1024
"""Of a passage; a longer context is not asked for."""
USUAL_BAG_SIZE = 4

_CARD = re.compile(r"superposition, K = (\d+)")
_CHECKED_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model folder, before its weights are loaded."""

    folder: Path
    name: str
    """Unique in the audit."""
    fingerprint: str
    """Checksum of its configuration and weights."""
    num_positions: int
    bag_size: int | None
    """Of its superposition phase, as its model card has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """All models of an audit and what they share."""

    subjects: Sequence[Subject]
    tokenizer: HuggingFaceTokenizer
    num_positions: int


def open_subjects(folders: Sequence[Path]) -> Subjects:
    """Look at all models, and find the tokenizer and the context that they share.

    Args:
        folders: in Hugging Face format, each with a tokenizer.

    Raises:
        ValueError: a sentence for each that cannot be asked, or that differs from the first.
    """
    problems = []
    for folder in folders:
        if not (folder / "config.json").is_file():
            problems.append(
                f"{folder}: has no config.json. Give a folder that `tst-megatron export` wrote"
            )
        elif not list(folder.glob("*.safetensors")):
            problems.append(f"{folder}: has no *.safetensors file. Export or fetch it again")
    if problems:
        raise ValueError("\n".join(problems))
    tokenizers = [load_hugging_face(folder) for folder in folders]
    for folder, tokenizer in zip(folders[1:], tokenizers[1:], strict=True):
        if not _is_same(tokenizer, tokenizers[0]):
            problems.append(
                f"{folder}: its tokenizer is not that of {folders[0]}, so the models would read "
                "other tokens. Give models that were trained with one tokenizer"
            )
    num_positions = [positions(folder) for folder in folders]
    for folder, number in zip(folders, num_positions, strict=True):
        if number < FEWEST_POSITIONS:
            problems.append(
                f"{folder}: has {number:,} positions, and the models share no context of "
                f"{FEWEST_POSITIONS}, which the probes need. Leave it out"
            )
    if problems:
        raise ValueError("\n".join(problems))
    names = _names(folders)
    return Subjects(
        subjects=[
            Subject(
                folder=folder,
                name=name,
                fingerprint=_fingerprint(folder),
                num_positions=number,
                bag_size=_bag_size(folder),
            )
            for folder, name, number in zip(folders, names, num_positions, strict=True)
        ],
        tokenizer=tokenizers[0],
        num_positions=min(*num_positions, MOST_POSITIONS),
    )


def _is_same(one: HuggingFaceTokenizer, other: HuggingFaceTokenizer) -> bool:
    facts = [(each.facts.vocab_size, each.facts.bos_id, each.facts.eod_id) for each in (one, other)]
    return facts[0] == facts[1] and json.loads(one.serialized) == json.loads(other.serialized)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as make them differ."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for number in range(1, longest + 1):
        names = ["/".join(each[-number:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    # A model against itself.
    return [f"{each[-1]} ({at})" for at, each in enumerate(parts, start=1)]


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _bag_size(folder: Path) -> int | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = _CARD.findall(card.read_text(encoding="utf-8", errors="replace"))
    return int(found[-1]) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that is in memory."""

    subject: Subject
    network: Any
    device: str
    has_plain_head: bool
    """Whether logits are the output table times the last hidden states, and nothing more."""

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return what ``logits`` is made of, for each position: hidden states or logits."""
        if self.has_plain_head:
            network = self.network.base_model
            return _tensor(network(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state)
        return _tensor(self.network(input_ids=ids_BT, attention_mask=mask_BT).logits)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return [N, V] logits of some positions in float32."""
        head = self.network.get_output_embeddings()
        found = head(hidden_NH) if self.has_plain_head else hidden_NH
        return _tensor(found).float()


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def load(subject: Subject, device: str, vocab_size: int) -> Model:
    """Load a model's weights.

    Args:
        subject: the model.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        vocab_size: of the tokenizer.

    Raises:
        ValueError: it is damaged, incomplete, holds NaN, or has fewer tokens than its tokenizer.
    """
    network, info = load_in_transformers(subject.folder, torch.float32 if device == "cpu" else None)
    if lacking := sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())])):
        raise ValueError(
            f"{subject.folder}: transformers has no weights for {', '.join(lacking[:10])}. "
            "Fetch the folder again"
        )
    num_rows = network.get_input_embeddings().weight.shape[0]
    if num_rows < vocab_size:
        raise ValueError(
            f"{subject.folder}: has {num_rows:,} tokens in its embedding, and its tokenizer has "
            f"{vocab_size:,}. Give the tokenizer that it was trained with"
        )
    network = network.to(device)
    return Model(
        subject=subject, network=network, device=device, has_plain_head=_has_plain_head(network)
    )


@torch.no_grad()
def _has_plain_head(network: Any) -> bool:
    """Tell whether the logits can be computed for some positions alone.

    Some families scale or cap their logits, which only the complete model does.
    """
    head = network.get_output_embeddings()
    if head is None or network.base_model is network:
        return False
    ids = torch.arange(_CHECKED_TOKENS, device=network.device)[None]
    mask = torch.ones_like(ids)
    whole = network(input_ids=ids, attention_mask=mask).logits
    parts = head(network.base_model(input_ids=ids, attention_mask=mask).last_hidden_state)
    return bool(torch.equal(whole, parts))
