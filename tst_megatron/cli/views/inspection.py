"""An inspected folder as lines of text, and the lengths of its documents as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tst_megatron.data.verify.held_out_size import held_out_warnings
from tst_megatron.data.verify.inspect import Inspection, Sample, visible
from tst_megatron.data.verify.lengths import Lengths, octaves
from tst_megatron.system.files import beside

SEQUENCE_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
BAR_CHARACTERS = 40
CHARACTERS_SHOWN = 1000
"""Of each sample."""


def lines(inspection: Inspection) -> Iterator[str]:
    """Return the inspection, line by line and without colours."""
    yield from _origin(inspection)
    yield ""
    yield from _table(inspection)
    for warning in held_out_warnings(inspection.manifest):
        yield ""
        yield f"warning: {warning}"
    if not inspection.lengths[inspection.split].num_documents:
        return
    yield ""
    yield from _histogram(inspection)
    yield ""
    yield f"bytes of text per token: {inspection.bytes_per_token:.2f} ({inspection.split})"
    yield ""
    yield from _frequent(inspection)
    for sample in inspection.samples:
        yield ""
        yield from _sample(sample, inspection.split)


def draw_lengths(lengths: Lengths, split: str, picture: Path) -> None:
    """Write a PNG of how documents and tokens are distributed over the lengths of documents.

    Args:
        lengths: of a split.
        split: its name.
        picture: where the PNG goes; replaced whole.

    Raises:
        ValueError: the split has no document.
    """
    from matplotlib.figure import Figure

    if not lengths.num_documents:
        raise ValueError(f"--picture: {split} has no document to draw. Name another --split.")
    edges = octaves(lengths, parts=4)
    documents, tokens = zip(*lengths.bins(edges), strict=True)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, numbers, colour in (
        (f"{lengths.num_documents:,} documents", documents, "tab:blue"),
        (f"{lengths.num_tokens:,} tokens, by the length of their document", tokens, "tab:orange"),
    ):
        percent = [100 * number / sum(numbers) for number in numbers]
        axes.stairs(percent, edges, color=colour, label=name, fill=colour == "tab:blue", alpha=0.8)
    axes.axvline(
        lengths.percentile(50), color="black", linestyle="--", linewidth=1, label="median document"
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens of the document, BOS and EOD included")
    axes.set_ylabel("share in each quarter of a doubling (%)")
    axes.set_title(f"Lengths of documents, {split}")
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    new = beside(picture)
    figure.savefig(new, dpi=120, format="png")
    new.replace(picture)


def _origin(inspection: Inspection) -> Iterator[str]:
    manifest = inspection.manifest
    tokenizer = manifest.tokenizer
    inputs = [entry["name"] for entry in manifest.recipe.get("inputs", [])]
    named = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    yield f"{manifest.path.parent}"
    yield f"  made of    {len(inputs):,} file{'' if len(inputs) == 1 else 's'}: {named}"
    yield (
        f"  tokenizer  {tokenizer.kind}, {tokenizer.vocab_size:,} ids, stored as {manifest.dtype}, "
        f"sha256 {tokenizer.sha256[:12]}"
    )
    for name, rule in manifest.rules.items():
        yield f"  {name:<9}  {rule}"
    if inspection.markup_tokens:
        yield f"  added      in text these are their ids: {' '.join(inspection.markup_tokens)}"
    left_out = manifest.left_out
    yield (
        f"  left out   {left_out.empty:,} empty texts, {left_out.rejected:,} lines that hold no "
        f"document, {left_out.duplicates:,} copies"
    )


def _table(inspection: Inspection) -> Iterator[str]:
    rows: list[tuple[str, Callable[[Lengths], str]]] = [
        ("mean length", lambda each: f"{each.num_tokens / each.num_documents:,.1f}"),
        ("median", lambda each: f"{each.percentile(50):,}"),
        ("90th percentile", lambda each: f"{each.percentile(90):,}"),
        ("99th percentile", lambda each: f"{each.percentile(99):,}"),
        ("longest", lambda each: f"{each.longest:,}"),
    ]
    for length in SEQUENCE_LENGTHS:
        rows.append((f"below {length:,}", _percent_below(length)))
    every = inspection.lengths
    yield _row("", list(every))
    yield _row("documents", [f"{each.num_documents:,}" for each in every.values()])
    yield _row("tokens", [f"{each.num_tokens:,}" for each in every.values()])
    for name, of in rows:
        yield _row(name, [of(each) if each.num_documents else "-" for each in every.values()])


def _row(name: str, cells: list[str]) -> str:
    return f"  {name:<16}" + "".join(f"{cell:>20}" for cell in cells)


def _percent_below(length: int) -> Callable[[Lengths], str]:
    return lambda each: f"{100 * each.fraction_below(length):.1f} %"


def _histogram(inspection: Inspection) -> Iterator[str]:
    lengths = inspection.lengths[inspection.split]
    edges = octaves(lengths)
    bins = list(lengths.bins(edges))
    most = max(documents for documents, _ in bins)
    yield f"lengths of documents in tokens, {inspection.split}:"
    head = f"  {'from':>11} {'to':>13}  {'documents':<{BAR_CHARACTERS}} {'%':>5}"
    yield f"{head}  {'% of tokens':>11}"
    for low, high, (documents, tokens) in zip(edges, edges[1:], bins, strict=False):
        # An existing one is seen.
        bar = "#" * -(-documents * BAR_CHARACTERS // most)
        shares = (100 * documents / lengths.num_documents, 100 * tokens / lengths.num_tokens)
        yield (
            f"  {low:>11,} {high - 1:>13,}  {bar:<{BAR_CHARACTERS}} {shares[0]:>5.1f}  "
            f"{shares[1]:>11.1f}"
        )


def _frequent(inspection: Inspection) -> Iterator[str]:
    yield f"most frequent of {inspection.num_counted:,} tokens, {inspection.split}:"
    for each in inspection.frequent:
        text = each.text.replace("\n", "\u240a")
        yield f"  {each.token:>7} {100 * each.fraction:>6.2f} %  [{text}]"


def _sample(sample: Sample, split: str) -> Iterator[str]:
    yield f"--- {split} document {sample.document:,}, {sample.num_tokens:,} tokens"
    yield visible(sample.text[:CHARACTERS_SHOWN])
    if len(sample.text) > CHARACTERS_SHOWN or sample.num_decoded < sample.num_tokens:
        yield f"--- cut after {min(len(sample.text), CHARACTERS_SHOWN):,} characters"
