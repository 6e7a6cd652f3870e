"""Megatron without us: its own ``pretrain``, GPTModel and builder, on recorded token batches.

Of this project it imports the CPU host alone. Run as ``stock_arm.py TOKENS.npy FLAG...`` on each
rank; its numbers go to TensorBoard.
"""

import functools
import sys

import numpy as np
import torch

from tst_megatron.megatron.cpu import host


class Recorded(torch.utils.data.Dataset):
    """[samples, L + 1] token ids, in the order in which they are to be read."""

    def __init__(self, path):
        self.tokens = np.load(path)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, sample):
        return {"tokens": torch.from_numpy(self.tokens[sample])}


def loss_func(loss_mask, output):
    loss = torch.sum(output.view(-1).float() * loss_mask.view(-1))
    count = loss_mask.sum().clone().detach().to(torch.int)
    report = torch.cat([loss.clone().detach().view(1), count.float().view(1)])
    return loss, count, {"lm loss": report}


def forward_step(data_iterator, model):
    tokens = next(data_iterator)["tokens"]
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    mask = torch.ones_like(labels, dtype=torch.float)
    output = model(inputs, positions, None, labels=labels, loss_mask=mask)
    return output, functools.partial(loss_func, mask)


def main():
    host.install()
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args

    recorded = Recorded(sys.argv.pop(1))

    def datasets(num_samples, vp_stage=None):
        return recorded, None, None

    datasets.is_distributed = True
    args = parse_and_validate_args()
    container = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(container, datasets, ModelType.encoder_or_decoder, forward_step)


if __name__ == "__main__":
    main()
