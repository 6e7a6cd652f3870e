"""Check that prepared folders can be joined into one, and list every reason against it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tst_megatron.data.manifest import ADOPTED, Manifest, load_manifest
from tst_megatron.data.text.inputs import Shard
from tst_megatron.data.text.split import SPLIT_RULE
from tst_megatron.data.tokens.format import idx_path, token_dtype
from tst_megatron.data.verify.recorded_files import differs, tokenizer_problems

SETTINGS = ("text_key", "held_out_fraction", "test_fraction")
"""Keys of a recipe that must be the same in all shards."""
MOST_LISTED = 20
"""So many shards of a text are named in an error."""


def load_shards(shards: Sequence[Path]) -> tuple[list[Manifest], list[str]]:
    """Read the manifests, and say why some cannot be read."""
    manifests, problems = [], []
    for shard in shards:
        try:
            manifests.append(load_manifest(shard))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if not shards:
        problems.append("no folders to merge. Name those that `prepare` made, in their order.")
    return manifests, problems


def shard_problems(manifests: Sequence[Manifest]) -> list[str]:
    """List why the shards cannot be read as one text, from their manifests alone."""
    if adopted := [each.path.parent for each in manifests if ADOPTED in each.recipe]:
        return [
            f"{folder}: was made by `data adopt` and has no token files of its own to join. Name "
            "it in a recipe's data: block beside the others, or prepare its text."
            for folder in adopted
        ]
    problems = _differences(manifests) + _repeated(manifests)
    # Shards that differ may not have the same splits.
    return problems or _empty_splits(manifests)


def _differences(manifests: Sequence[Manifest]) -> list[str]:
    """Settings that are not the first shard's, and rules that are not this version's."""
    first = _settings(manifests[0])
    problems = []
    for manifest in manifests:
        for name, value in _settings(manifest).items():
            if value != first[name]:
                problems.append(
                    f"{manifest.path.parent}: {name} is {value!r}, in "
                    f"{manifests[0].path.parent} it is {first[name]!r}. Prepare all shards with "
                    "the same tokenizer and settings."
                )
        if manifest.rules.get("split") != SPLIT_RULE:
            problems.append(
                f"{manifest.path.parent}: its split rule is {manifest.rules.get('split')!r}, "
                f"this version's is {SPLIT_RULE!r}. Prepare the shard again."
            )
    return problems


def _settings(manifest: Manifest) -> dict[str, Any]:
    return {
        **{f"tokenizer's {name}": value for name, value in asdict(manifest.tokenizer).items()},
        "token type": manifest.dtype,
        "splits": list(manifest.splits()),
        **{key: manifest.recipe.get(key) for key in SETTINGS},
        # A merged folder says "each shard": where copies were looked for is no difference.
        "deduplicate": bool(manifest.recipe.get("deduplicate")),
    }


def _repeated(manifests: Sequence[Manifest]) -> list[str]:
    """Shards that are an earlier one: all of its text would be read twice in an epoch."""
    problems = []
    folders: dict[Path, Path] = {}
    texts: dict[tuple[str, ...], Path] = {}
    for manifest in manifests:
        folder = manifest.path.parent
        text = tuple(split.bin_sha256 for split in manifest.splits().values())
        if folder.resolve() in folders:
            problems.append(
                f"{folder}: is the same folder as {folders[folder.resolve()]}. Name it once."
            )
        elif text in texts:
            problems.append(
                f"{folder}: holds the same tokens as {texts[text]}. Each text is merged once: "
                "leave one of the two out."
            )
        folders.setdefault(folder.resolve(), folder)
        if any(split.tokens for split in manifest.splits().values()):
            texts.setdefault(text, folder)
    return problems


def incomplete_texts(manifests: Sequence[Manifest]) -> list[str]:
    """Texts whose shards (`prepare --shard`) are not all here, once and in their order.

    Jobs that saw other files than the rest, since some came meanwhile, are found here too: what
    they prepared are shards of another text.
    """
    shards: dict[str, list[tuple[Shard, Path]]] = defaultdict(list)
    for manifest in manifests:
        for record in _records(manifest):
            place = manifest.path.parent
            shards[record["text_sha256"]].append((Shard.recorded(record), place))
    problems = []
    for given in shards.values():
        of, folder = given[0][0].of, given[0][1]
        numbers = [shard.number for shard, _ in given]
        missing = sorted(set(range(of)) - set(numbers))
        other = [f"{each} is one of {shard.of:,}" for shard, each in given if shard.of != of]
        repeated = sorted(number for number, times in Counter(numbers).items() if times > 1)
        if other:
            what = f"is one of {of:,} shards of a text, and {other[0]}. Each text is merged once."
        elif repeated:
            what = f"{_shards(repeated)} of its text given more than once. Each is merged once."
        elif missing:
            what = (
                f"{_shards(missing)} of the {of:,} of its text missing. Name all of them, at once. "
                "Shards that were prepared when the text had other files (names or sizes) are of "
                "another text: prepare those again."
            )
        elif numbers != sorted(numbers):
            what = f"the shards of its text come as {_listed(numbers)}. Name them in their order."
        else:
            continue
        problems.append(f"{folder}: {what}")
    return problems


def _records(manifest: Manifest) -> list[dict[str, Any]]:
    """Of a shard, or of the shards that a merged folder was made of."""
    made_of = manifest.recipe.get("shards", [manifest.recipe])
    return [each["shard"] for each in made_of if "shard" in each]


def _shards(numbers: Sequence[int]) -> str:
    return f"shard{'s' * (len(numbers) > 1)} {_listed(numbers)}"


def _listed(numbers: Sequence[int]) -> str:
    words = [f"{number:,}" for number in numbers[:MOST_LISTED]]
    more = len(numbers) - MOST_LISTED
    return ", ".join(words) + (f" and {more:,} more" if more > 0 else "")


def repeated_inputs(manifests: Sequence[Manifest]) -> list[str]:
    """Shards that have files with an earlier one in common, in words.

    No fault: manifests do not tell whether such files hold documents, and `prepare` takes copies of
    a file too.
    """
    notes = []
    files: dict[str, Path] = {}
    for manifest in manifests:
        folder = manifest.path.parent
        # Files without a byte are alike and repeat nothing.
        inputs = {entry["sha256"]: entry["name"] for entry in manifest.inputs() if entry["bytes"]}
        if same := [sha for sha in inputs if sha in files]:
            notes.append(
                f"{folder}: {len(same):,} of its {len(inputs):,} files have the content of files "
                f"of earlier shards, {inputs[same[0]]} that of one of {files[same[0]]}. Documents "
                "in them are there twice."
            )
        for sha in inputs:
            files.setdefault(sha, folder)
    return notes


def _empty_splits(manifests: Sequence[Manifest]) -> list[str]:
    documents = {
        name: sum(manifest.splits()[name].documents for manifest in manifests)
        for name in manifests[0].splits()
    }
    if all(documents.values()):
        return []
    return [
        f"the {len(manifests)} shards have "
        f"{' and '.join(f'{number} {name}' for name, number in documents.items())} documents "
        "together, each split needs at least one. Merge more shards, or prepare them with larger "
        "fractions."
    ]


def mixed_files(manifest: Manifest) -> list[str]:
    """List files whose size is wrong, before hours of copying; merging compares the content."""
    problems = tokenizer_problems(manifest)
    for split in manifest.splits().values():
        try:
            reader = split.reader()
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        there = (reader.num_documents, reader.num_tokens, reader.dtype)
        if there != (split.documents, split.tokens, token_dtype(manifest.tokenizer.vocab_size)):
            problems.append(differs(idx_path(split.prefix)))
    return problems
