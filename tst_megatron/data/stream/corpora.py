"""Open the corpora that a recipe's ``data:`` block names, and check them against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.data.manifest import Manifest, load_manifest
from tst_megatron.data.stream.blend import Blend
from tst_megatron.data.stream.plan import CorpusSize, raw_tokens_of, smallest_text
from tst_megatron.data.verify.held_out_size import fraction_for, num_sequences
from tst_megatron.data.verify.recorded_files import changed_files
from tst_megatron.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """One prepared folder of a recipe."""

    folder: Path
    """As the recipe names it."""
    weight: float
    manifest: Manifest
    cache: Path
    """Folder that keeps its indexes."""

    def size(self) -> CorpusSize:
        """Return the facts that the stream's arithmetic needs."""
        return CorpusSize(
            name=str(self.folder), weight=self.weight, num_tokens=self.manifest.train.tokens
        )


def open_corpora(
    data: Mapping[Path, float], cache: str | None, problems: list[str]
) -> list[Corpus]:
    """Read the manifests of a ``data:`` block, or say what is wrong with each.

    Args:
        data: prepared folder -> weight.
        cache: Megatron's ``data-cache-path``; without it each folder keeps its own indexes.
        problems: is added to.

    Returns:
        The corpora in the block's order, or none if one cannot be read.
    """
    if not data:
        problems.append("data: is missing. Name a folder made by `tst-megatron data prepare`")
    corpora = []
    for folder, weight in data.items():
        try:
            manifest = load_manifest(folder)
        except (ValueError, OSError) as error:
            problems.append(f"data: {error}")
            continue
        if empty := manifest.empty_splits():
            problems.append(
                f"data: {folder} is a shard without a {' or '.join(empty)} document. Merge the "
                "shards first (`tst-megatron data merge`), and name the merged folder"
            )
            continue
        place = Path(cache) if cache else manifest.path.parent / "index"
        corpora.append(Corpus(folder=folder, weight=weight, manifest=manifest, cache=place))
    return corpora if len(corpora) == len(data) else []


def missing_texts(data: Mapping[Path, float]) -> list[Path]:
    """List the folders of a ``data:`` block where no text has been prepared yet.

    A folder that exists and cannot be read is not missing: ``open_corpora`` says what is wrong.

    Args:
        data: prepared folder -> weight.
    """
    missing = []
    for folder in data:
        try:
            load_manifest(folder)
        except FileNotFoundError:
            missing.append(folder)
        except (ValueError, OSError):
            continue
    return missing


def needed_lines(
    data: Mapping[Path, float], schedule: Schedule, *, unit_chunks: int, max_epochs: int
) -> list[str]:
    """Say how much a run will read of texts that may not exist yet, a line for each folder.

    Args:
        data: prepared folder -> weight.
        schedule: of the run.
        unit_chunks: U (``tst.stream-unit-bags``).
        max_epochs: passes over a corpus that may be made (``tst.max-epochs``).
    """
    if not data:
        return []
    passes = "one epoch" if max_epochs == 1 else f"{max_epochs} epochs"
    return [
        f"{folder}: the run reads {wanted:,} raw tokens of it; for {passes} its training text must "
        "have at least "
        f"{smallest_text(-(-wanted // max_epochs), schedule, unit_chunks=unit_chunks):,} tokens"
        for folder, wanted in zip(data, raw_tokens_of([*data.values()], schedule), strict=True)
    ]


def corpora_problems(corpora: Sequence[Corpus]) -> list[str]:
    """List why these corpora cannot be read as one text."""
    first = corpora[0]
    problems = []
    folders = [corpus.manifest.path.parent.resolve() for corpus in corpora]
    for number, corpus in enumerate(corpora):
        if (same := folders.index(folders[number])) != number:
            problems.append(
                f"data: {corpus.folder} is the same folder as {corpora[same].folder}. Name it once"
            )
    for corpus in corpora[1:]:
        if corpus.manifest.tokenizer != first.manifest.tokenizer:
            problems.append(
                f"data: {corpus.folder} was prepared with another tokenizer than {first.folder}, "
                "or with another rule for special tokens, so its ids mean other text. Prepare all "
                "with one tokenizer and rule"
            )
        if (corpus.manifest.test is None) != (first.manifest.test is None):
            problems.append(
                f"data: one of {first.folder} and {corpus.folder} has a test split and the other "
                "has none. Prepare both with a test fraction, or neither"
            )
    return problems


_FRACTIONS = ("held_out_fraction", "test_fraction")


def leak_warnings(corpora: Sequence[Corpus]) -> list[str]:
    """List corpora of the same files with other fractions: one trains on what another holds out.

    The content of files is compared, not that of documents; `data verify` of all folders at once
    looks at these.
    """
    warnings = []
    for number, corpus in enumerate(corpora):
        for other in corpora[:number]:
            ours, theirs = corpus.manifest.recipe, other.manifest.recipe
            shared = _files(other.manifest).keys() & _files(corpus.manifest).keys()
            if not shared or all(ours.get(key) == theirs.get(key) for key in _FRACTIONS):
                continue
            name = min(_files(corpus.manifest)[sha256] for sha256 in shared)
            warnings.append(
                f"data: {other.folder} and {corpus.folder} have {len(shared):,} of their files in "
                f"common ({name}) and hold out other shares of them, so text that one holds out is "
                "trained on in the other. Prepare them with the same fractions"
            )
    return warnings


def _files(manifest: Manifest) -> dict[str, str]:
    """Return SHA-256 of each input -> its name."""
    inputs = manifest.recipe.get("inputs")
    entries = inputs if isinstance(inputs, list) else []
    return {str(each["sha256"]): str(each["name"]) for each in entries if "sha256" in each}


def held_out_problems(
    corpora: Sequence[Corpus], *, num_samples: int, num_latent_positions: int
) -> list[str]:
    """List held-out texts that are too short for their share of an evaluation.

    Args:
        corpora: of the recipe.
        num_samples: sequences of one evaluation.
        num_latent_positions: L, raw tokens per sequence.
    """
    shares = Blend([corpus.weight for corpus in corpora]).dealt_before(num_samples)
    problems = []
    for corpus, share in zip(corpora, shares, strict=True):
        for name, split in corpus.manifest.splits().items():
            held_out = num_sequences(split.tokens, num_latent_positions)
            if name != "train" and share > held_out:
                fraction = fraction_for(corpus.manifest, name, share, num_latent_positions)
                option = "held-out" if name == "validation" else name
                enough = f" (--{option}-fraction {fraction:g})" if fraction else ""
                problems.append(
                    f"eval-iters: an evaluation reads {share:,} sequences of the {name} text of "
                    f"{corpus.folder}, which has {held_out:,}. Lower eval-iters, or prepare with a "
                    f"larger {option} fraction{enough}"
                )
    return problems


def changed_text(corpora: Sequence[Corpus]) -> list[str]:
    """List files that are not what their manifest recorded, as far as a start-up can read them."""
    return [f"data: {problem}" for corpus in corpora for problem in changed_files(corpus.manifest)]
