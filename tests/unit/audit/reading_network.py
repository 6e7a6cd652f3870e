"""A network whose weights are written by hand: it knows pairs of tokens, and can look up.

It foretells a token from the one before by counted pairs, and from what followed the last two
tokens where they stood before (an induction head that matches two tokens). So it can do what the
probes ask, and known damage has known effects. It answers as a model of transformers does.

Shapes: B passages, T tokens, D embedding, V vocabulary.
"""

from types import SimpleNamespace

import numpy as np
import torch

WIDTH = 128
FIRST, SECOND = 14.0, 8.0
"""How much the last token counts in a match, and the one before it."""
SINK = 17.0
"""Attention to nothing, which is more than one token that matches by half."""
COPIED = 9.0
"""Logits of a token that was looked up."""


class ReadingNetwork:
    """Answers with logits of all positions."""

    def __init__(self, documents, vocab_size, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(vocab_size, WIDTH, generator=generator)
        self.table_VD = table / table.norm(dim=1, keepdim=True)
        counts = np.full((vocab_size, vocab_size), 0.02)
        for ids in documents:
            np.add.at(counts, (ids[:-1], ids[1:]), 1)
        self.pairs_VV = torch.tensor(np.log(counts / counts.sum(1, keepdims=True))).float()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.embeddings_VD = self.table_VD.clone()
        self.inverse_temperature = 1.0
        self.mix = lambda hidden_BTD: hidden_BTD
        self.num_hidden = 0
        """Tokens before each that it cannot see."""

    def __call__(self, input_ids, attention_mask):
        hidden = self.mix(self.embeddings_VD[input_ids])
        length = hidden.shape[1]
        before = torch.zeros_like(hidden)
        if not self.num_hidden:
            before[:, 1:] = hidden[:, :-1]
        two_before = torch.zeros_like(hidden)
        if not self.num_hidden:
            two_before[:, 2:] = hidden[:, :-2]
        match = FIRST * hidden @ before.transpose(1, 2)
        match += SECOND * before @ two_before.transpose(1, 2)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        is_seen = (distance >= 0) & ((distance == 0) | (distance > self.num_hidden))
        match = match.masked_fill(~is_seen, -torch.inf)
        sink = torch.full((*match.shape[:2], 1), SINK)
        attention = torch.cat([match, sink], dim=2).softmax(dim=2)[..., :-1]
        copied = attention @ hidden @ self.table_VD.T
        now = (30 * hidden @ self.table_VD.T).softmax(dim=2)
        logits = now @ self.pairs_VV + COPIED * copied
        return SimpleNamespace(logits=logits * self.inverse_temperature)

    def get_output_embeddings(self):
        """As transformers names it; not asked where logits are not made of hidden states."""


# --- damage --------------------------------------------------------------------------------------


def with_noise(network):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(network.embeddings_VD.shape, generator=generator) / WIDTH**0.5
    network.embeddings_VD = network.embeddings_VD + 1.2 * noise


def with_temperature(network):
    network.inverse_temperature *= 0.6


def with_blur(network):
    """Each embedding has half of that of the token before in it."""

    def mix(hidden):
        mixed = 0.5 * hidden
        mixed[:, 1:] += 0.5 * hidden[:, :-1]
        return mixed

    network.mix = mix


def with_blur_in_bags(network, bag_size=4):
    """Each embedding is the mean of its bag so far."""

    def mix(hidden):
        mixed = torch.empty_like(hidden)
        for start in range(0, hidden.shape[1], bag_size):
            part = hidden[:, start : start + bag_size]
            counts = torch.arange(1, part.shape[1] + 1)[None, :, None]
            mixed[:, start : start + bag_size] = part.cumsum(1) / counts
        return mixed

    network.mix = mix


def with_last_tokens_hidden(network, bag_size=4):
    network.num_hidden = bag_size
