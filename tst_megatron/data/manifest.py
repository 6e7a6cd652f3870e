"""Read and write the manifest of a prepared folder: what it holds and how it was made.

`prepare`, `merge` and `adopt` write it; training, evaluation and export read it. A folder is
prepared if, and only if, it has a manifest, because a finished folder gets its name by one rename.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tst_megatron.data.text.split import SPLIT_RULE
from tst_megatron.data.tokenizer.facts import TokenizerFacts, tokenizer_rules
from tst_megatron.data.tokenizer.round_trip import RoundTrip
from tst_megatron.data.tokens.format import bin_path, token_dtype
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedFacts
from tst_megatron.system.paths import is_own_name

FORMAT_VERSION = 3
FILE_NAME = "manifest.json"
ADOPTED = "adopted"
"""Key of a recipe: the folder's token files are links to a pair that another tool wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One .bin/.idx pair."""

    prefix: Path
    """Absolute path without extension, as Megatron's data path wants it."""
    documents: int
    tokens: int
    """End-of-document tokens included."""
    bin_sha256: str
    idx_sha256: str
    bin_fingerprint: str
    idx_fingerprint: str
    """Content as far as a start-up can read it (`fingerprint.py`)."""
    has_gaps: bool = False
    """True where the .bin holds documents of other splits too: it is adopted (`adopt.py`)."""

    def reader(self) -> IndexedReader:
        """Open the pair; errors are those of `IndexedReader`."""
        return IndexedReader(self.prefix, num_tokens=self.tokens if self.has_gaps else None)

    @property
    def text_sha256(self) -> str:
        """Name of the documents: hash of the .bin, and of the index that chooses among them."""
        return f"{self.bin_sha256} {self.idx_sha256}" if self.has_gaps else self.bin_sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Counts of what the inputs held and the token files do not hold."""

    empty: int
    """Documents without text."""
    rejected: int
    """Lines, rows and files that hold no document; rejected.jsonl lists them."""
    duplicates: int
    """Documents with the text of an earlier one, where these were left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Record of what was seen of the text while it was read; earlier versions wrote none."""

    files: Sequence[Mapping[str, Any]]
    """name and documents in the splits of each file, in their order; two may have the same name."""
    not_read: Sequence[Mapping[str, Any]]
    """Files in the folders that were named which are not text (``inputs.NotRead``)."""
    round_trip: RoundTrip


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A prepared folder; every path is absolute."""

    path: Path
    train: Split
    validation: Split
    test: Split | None
    """None when the text was prepared without a test fraction."""
    unigram_entropy_nats: float
    """Entropy of the training tokens' frequencies: the loss of a model that knows these alone."""
    tokenizer: TokenizerFacts
    tokenizer_path: Path
    """The copy in the folder: a SentencePiece model, or a folder in Hugging Face format."""
    dtype: str
    """Stored token type, uint16 or int32."""
    left_out: LeftOut
    recipe: Mapping[str, Any]
    """Inputs, tokenizer and settings the folder was made from, as JSON values."""
    rules: Mapping[str, str]
    """Rules by which documents were treated, in words."""
    versions: Mapping[str, str]
    """Packages that made the folder."""
    contents: Contents | None = None
    reused: bool = False
    """True when `prepare` found this folder finished and did nothing."""

    def splits(self) -> dict[str, Split]:
        """Return the splits of this folder, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def inputs(self) -> list[dict[str, Any]]:
        """Return name, size and hash of the files that the folder was made of, in order."""
        return list(self.recipe.get("inputs", []))

    def empty_splits(self) -> list[str]:
        """List the splits without a document, which only a shard may have."""
        return [name for name, split in self.splits().items() if not split.documents]


def load_manifest(path: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Args:
        path: the folder, or its manifest.json.

    Raises:
        FileNotFoundError: the folder has no manifest.
        ValueError: not a manifest, or one of another format version, or a .bin/.idx pair.
    """
    is_pair = path.suffix in (".bin", ".idx") or bin_path(path).is_file()
    if is_pair and not path.is_dir():
        raise ValueError(
            f"{path}: a .bin/.idx pair, which has no manifest of its own. Give the folder that "
            "`prepare` made; for a pair that another tool wrote, `tst-megatron data adopt` makes a "
            "folder that can be given."
        )
    path = (path / FILE_NAME if path.is_dir() else path).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such manifest. Give a folder that `prepare` has finished, or prepare the "
            "text first."
        )
    try:
        values = json.loads(path.read_bytes())
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a manifest of prepared data ({error!r}). Give the manifest.json that "
            "`prepare` wrote."
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: manifest format {version}, this version reads {FORMAT_VERSION}. Prepare the "
            "text again."
        )
    try:
        return _from_json(path, values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: manifest is incomplete or damaged ({error!r}). Prepare the text again."
        ) from error


def manifest_json(
    *,
    recipe: Mapping[str, Any],
    splits: Mapping[str, IndexedFacts],
    unigram_entropy_nats: float,
    tokenizer: TokenizerFacts,
    tokenizer_name: str,
    left_out: LeftOut,
    contents: Contents | None,
    versions: Mapping[str, str],
    dtype: str | None = None,
) -> str:
    """Return the text of manifest.json.

    Args:
        recipe: inputs, tokenizer and settings; a second `prepare` with the same recipe reuses the
            folder.
        splits: what the writers of `train`, `validation` and perhaps `test` returned.
        unigram_entropy_nats: of the training tokens.
        tokenizer: that made the tokens.
        tokenizer_name: of its file or folder beside the manifest.
        left_out: what is not in the splits.
        contents: what was seen of the text; None where that is not known of all of it.
        versions: package to version, for the record.
        dtype: stored token type, where it is not that of the vocabulary.
    """
    values = {
        "format_version": FORMAT_VERSION,
        "splits": {
            name: {
                "prefix": name,
                "documents": facts.num_documents,
                "tokens": facts.num_tokens,
                "bin_sha256": facts.bin_sha256,
                "idx_sha256": facts.idx_sha256,
                "bin_fingerprint": facts.bin_fingerprint,
                "idx_fingerprint": facts.idx_fingerprint,
            }
            for name, facts in splits.items()
        },
        "unigram_entropy_nats": unigram_entropy_nats,
        "left_out": asdict(left_out),
        **({} if contents is None else {"contents": asdict(contents)}),
        "tokenizer": asdict(tokenizer) | {"name": tokenizer_name},
        "dtype": dtype or token_dtype(tokenizer.vocab_size).name,
        "rules": {**tokenizer_rules(tokenizer), "split": SPLIT_RULE},
        "recipe": recipe,
        "versions": versions,
    }
    return json.dumps(values, indent=2) + "\n"


def _from_json(path: Path, values: dict[str, Any]) -> Manifest:
    tokenizer = dict(values["tokenizer"])
    tokenizer_path = _beside(path, tokenizer.pop("name"))
    splits = {
        name: _split_from_json(path, split, has_gaps=ADOPTED in values["recipe"])
        for name, split in values["splits"].items()
    }
    return Manifest(
        path=path,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        unigram_entropy_nats=float(values["unigram_entropy_nats"]),
        tokenizer=TokenizerFacts(**tokenizer),
        tokenizer_path=tokenizer_path,
        dtype=str(values["dtype"]),
        left_out=LeftOut(**values["left_out"]),
        contents=_contents_from_json(values["contents"]) if "contents" in values else None,
        recipe=dict(values["recipe"]),
        rules=dict(values["rules"]),
        versions=dict(values["versions"]),
    )


def _contents_from_json(values: dict[str, Any]) -> Contents:
    return Contents(
        files=[
            {"name": str(each["name"]), "documents": int(each["documents"])}
            for each in values["files"]
        ],
        not_read=[dict(each) for each in values["not_read"]],
        round_trip=RoundTrip.recorded(values["round_trip"]),
    )


def _split_from_json(path: Path, values: dict[str, Any], *, has_gaps: bool) -> Split:
    return Split(
        prefix=_beside(path, values["prefix"]),
        documents=int(values["documents"]),
        tokens=int(values["tokens"]),
        bin_sha256=str(values["bin_sha256"]),
        idx_sha256=str(values["idx_sha256"]),
        bin_fingerprint=str(values["bin_fingerprint"]),
        idx_fingerprint=str(values["idx_fingerprint"]),
        has_gaps=has_gaps,
    )


def _beside(path: Path, name: Any) -> Path:
    """Return a file of the folder. It may be a link that the folder's owner made.

    Raises:
        ValueError: the name leads to another folder, whose text the manifest does not describe.
    """
    if not is_own_name(name):
        raise ValueError(f"it names {name!r}, which is outside its folder")
    return path.parent / str(name)
