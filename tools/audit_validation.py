"""Validate `tst-megatron audit`: damage that is known is found, and alike models raise no alarm.

    python tools/audit_validation.py --folder runs/audit-validation

Trains small models from random weights on Python's sources and on items like the probes', of other
seeds. Then it damages one of them in known ways and audits each against the model that it was made
from, and audits pairs of seeds. It prints the tables of docs/audit.md, and continues where it was.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tst_megatron.audit.compared import answers_of
from tst_megatron.audit.items import Catalogue, Scores
from tst_megatron.audit.margins import parse_margins
from tst_megatron.audit.models import store
from tst_megatron.audit.models.open_models import Model, Subject
from tst_megatron.audit.models.scores import best_inverse_temperature, score
from tst_megatron.audit.probes import forms, pairs
from tst_megatron.audit.probes.catalogue import make_catalogue
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.audit.probes.random_tokens import induction_tasks, ordinary_tokens
from tst_megatron.audit.report.story import SIGNS
from tst_megatron.data.text.standard_library import write_standard_library_corpus
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer, load_hugging_face

VOCAB_SIZE = 512
POSITIONS = 128
BAG_SIZE = 4
NUM_HELD_OUT = 60
SEED_OF_ITEMS = 1


def make_text(folder: Path) -> tuple[list[str], list[str], HuggingFaceTokenizer]:
    """Documents to train on, documents held out, and a tokenizer of them."""
    corpus = folder / "python.jsonl"
    if not corpus.exists():
        write_standard_library_corpus(corpus)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    random.Random(0).shuffle(texts)
    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        words = " ".join([*pairs.NAMES, *pairs.THINGS, *pairs.COLOURS, *forms.SIZES] * 2000)
        tokenizer.train_from_iterator([*texts[:200], words], trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
        ).save_pretrained(folder)
    return texts[NUM_HELD_OUT:], texts[:NUM_HELD_OUT], load_hugging_face(folder)


def sequences(
    texts: list[str], tokenizer: HuggingFaceTokenizer, encoder: Encoder, seed: int
) -> Callable[[int], torch.Tensor]:
    """Draws batches: a quarter of Python's sources, a quarter of items, a half of random copies.

    Short copies teach a model to look up, which takes most of so short a training.
    """
    generator = random.Random(f"training {seed}")
    stream = np.concatenate(tokenizer.encode(generator.sample(texts, 150)))
    tokens = ordinary_tokens(encoder)
    tasks = [*pairs.TASKS, *forms.TASKS, *induction_tasks(encoder)]

    def items() -> list[int]:
        found: list[int] = []
        while len(found) < POSITIONS:
            task = generator.choice(tasks)
            placement = generator.choice(["inside", "across"]) if task.is_placed else None
            passage = task.draw(encoder, generator, placement)
            found += [] if passage is None else passage.ids.tolist()
        return found[:POSITIONS]

    def copies() -> list[int]:
        length = generator.randrange(4, 24)
        once = generator.choices(tokens, k=length)
        return (once * (POSITIONS // length + 1))[:POSITIONS]

    def batch(size: int) -> torch.Tensor:
        rows = []
        for number in range(size):
            if number % 4 == 0:
                start = generator.randrange(len(stream) - POSITIONS)
                rows.append(stream[start : start + POSITIONS].tolist())
            else:
                rows.append(items() if number % 4 == 1 else copies())
        return torch.tensor(rows)

    return batch


def train(
    path: Path, seed: int, draw: Callable[[int], torch.Tensor], *, width: int, steps: int
) -> LlamaForCausalLM:
    """A small model; from its file where it was trained before."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    network = LlamaForCausalLM(config)
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.98))
    warm_up = 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 1.0 - 0.95 * step / steps)
    )
    start = time.time()
    for step in range(steps):
        ids = draw(16)
        loss = network(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{path.name} step {step} loss {loss.item():.3f} {time.time() - start:.0f} s")
    torch.save(network.state_dict(), path)
    return network.eval()


# --- damage --------------------------------------------------------------------------------------


def noise(network: LlamaForCausalLM) -> None:
    table = network.model.embed_tokens.weight
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        table += 0.5 * table.std() * torch.randn(table.shape, generator=generator)


def temperature(network: LlamaForCausalLM) -> None:
    with torch.no_grad():
        network.lm_head.weight *= 0.6


def blur(network: LlamaForCausalLM) -> None:
    """Mixes each embedding with those of the three tokens before."""

    def mixed(_: object, __: object, hidden: torch.Tensor) -> torch.Tensor:
        before = torch.zeros_like(hidden)
        for distance in (1, 2, 3):
            before[:, distance:] += hidden[:, :-distance] / 3
        return 0.6 * hidden + 0.4 * before

    network.model.embed_tokens.register_forward_hook(mixed)


def blur_in_bags(network: LlamaForCausalLM) -> None:
    """Mixes each embedding with the mean of its bag as far as it is read."""

    def mixed(_: object, __: object, hidden: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros_like(hidden)
        for start in range(0, hidden.shape[1], BAG_SIZE):
            part = hidden[:, start : start + BAG_SIZE]
            counts = torch.arange(1, part.shape[1] + 1)[None, :, None]
            sums[:, start : start + BAG_SIZE] = part.cumsum(1) / counts
        return 0.4 * hidden + 0.6 * sums

    network.model.embed_tokens.register_forward_hook(mixed)


def last_tokens_hidden(network: LlamaForCausalLM) -> None:
    """Hides the last K tokens from attention, each token's own place excepted."""

    def masked(_: object, args: tuple, kwargs: dict) -> tuple:
        length = kwargs["input_ids"].shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        is_seen = (distance == 0) | (distance > BAG_SIZE)
        mask = torch.zeros(length, length).masked_fill(~is_seen, torch.finfo(torch.float32).min)
        rows = kwargs["input_ids"].shape[0]
        return args, {**kwargs, "attention_mask": mask[None, None].expand(rows, 1, -1, -1)}

    network.model.register_forward_pre_hook(masked, with_kwargs=True)


DAMAGES: dict[str, Callable[[LlamaForCausalLM], None]] = {
    "itself": lambda network: None,
    "noise": noise,
    "temperature": temperature,
    "blur": blur,
    "blur in bags": blur_in_bags,
    "last K hidden": last_tokens_hidden,
}


# --- audits --------------------------------------------------------------------------------------


def scores_of(
    name: str, network: LlamaForCausalLM, catalogue: Catalogue, folder: Path
) -> dict[str, Scores]:
    subject = Subject(
        folder=folder, name=name, fingerprint=name, num_positions=POSITIONS, bag_size=BAG_SIZE
    )
    model = Model(subject=subject, network=network, device="cpu", has_plain_head=True)
    found, inverse = {}, None
    for suite in catalogue.suites:
        path = store.path_of(
            folder / "scores", name.replace(" ", "-"), suite.name, suite.fingerprint()
        )
        kept = store.read(path, suite.num_scored)
        if kept is None:
            if inverse is None:
                inverse = best_inverse_temperature(model, catalogue.suites[0], batch_size=16)
            made = score(model, suite, inverse_temperature=inverse, batch_size=16)
            store.save(path, made, inverse)
            kept = store.read(path, suite.num_scored)
        assert kept is not None
        found[suite.name], inverse = kept
    print(f"{name}: loss {found['natural'].loss.mean():.3f}, temperature {1 / inverse:.3f}")
    return found


def damage_table(network: LlamaForCausalLM, catalogue: Catalogue, folder: Path) -> None:
    whole = scores_of("itself", network, catalogue, folder)
    verdicts: dict[str, dict[str, str]] = {}
    for name, damage in DAMAGES.items():
        damaged = copy.deepcopy(network)
        damage(damaged)
        ours = scores_of(name, damaged, catalogue, folder)
        answers = answers_of(name, ours, [whole], catalogue.probes, parse_margins([]), seed=1)
        verdicts[name] = {
            each.probe: f"{SIGNS[each.verdict]} {each.difference.value:+.2f}" for each in answers
        }
        values = {each.probe: each.baseline_value for each in answers}
    print("\n| probe | itself is at | " + " | ".join(DAMAGES) + " |")
    print("|" + "---|" * (len(DAMAGES) + 2))
    for probe, value in values.items():
        cells = " | ".join(verdicts[name][probe] for name in DAMAGES)
        print(f"| {probe} | {value:.2f} | {cells} |")


def false_alarms(
    all_scores: dict[str, dict[str, Scores]], catalogue: Catalogue, *, num_pairs: int
) -> None:
    names = list(all_scores)
    found = list(itertools.combinations(names, 2))
    chosen = random.Random(0).sample(found, min(num_pairs, len(found)))
    for num_more in (0, 3):
        alarms, of_probe = 0, {}
        for one, other in chosen:
            others = [name for name in names if name not in (one, other)][:num_more]
            baselines = [all_scores[each] for each in (other, *others)]
            answers = answers_of(
                one, all_scores[one], baselines, catalogue.probes, parse_margins([]), seed=1
            )
            bad = [each.probe for each in answers if each.verdict in ("worse", "better")]
            alarms += bool(bad)
            for probe in bad:
                of_probe[probe] = of_probe.get(probe, 0) + 1
        print(
            f"{alarms} of {len(chosen)} pairs of seeds have any better or worse, with "
            f"{num_more + 1} seeds of the baseline: {of_probe}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/audit-validation"))
    parser.add_argument("--steps", type=int, default=2000, help="of the model that is damaged")
    parser.add_argument("--seeds", type=int, default=11, help="models whose pairs are audited")
    parser.add_argument("--seed-steps", type=int, default=200)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--only-seeds", action="store_true", help="without the damaged model")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts, held_out, tokenizer = make_text(folder)
    encoder = Encoder(tokenizer, bag_size=BAG_SIZE, num_positions=POSITIONS)
    catalogue = make_catalogue(
        held_out, encoder, num_items=options.items, max_tokens=30_000, seed=SEED_OF_ITEMS
    )
    print(f"{len(catalogue.probes)} probes; left out: {catalogue.left_out}")
    if not options.only_seeds:
        draw = sequences(texts, tokenizer, encoder, 0)
        network = train(folder / "damaged.pt", 0, draw, width=96, steps=options.steps)
        damage_table(network, catalogue, folder)
    scores = {}
    for seed in range(1, options.seeds + 1):
        draw = sequences(texts, tokenizer, encoder, seed)
        path = folder / f"seed-{seed}.pt"
        network = train(path, seed, draw, width=48, steps=options.seed_steps)
        scores[f"seed {seed}"] = scores_of(f"seed {seed}", network, catalogue, folder)
    false_alarms(scores, catalogue, num_pairs=50)


if __name__ == "__main__":
    main()
