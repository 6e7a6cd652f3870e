"""Say of prepared folders whether they are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from tst_megatron.data.manifest import Manifest, load_manifest
from tst_megatron.data.verify.held_out_copies import HeldOutDocuments, held_out_of
from tst_megatron.data.verify.source_text import compare_with_inputs
from tst_megatron.data.verify.verify import Findings, num_bytes_to_read, verify_folder
from tst_megatron.system.progress import byte_progress, document_progress

SAMPLE = 0.001

_HeldOut = tuple[Manifest, list[HeldOutDocuments]]
"""A folder, and its held-out documents."""


def verify(
    folders: Sequence[Path],
    console: Console,
    *,
    against: Sequence[Path | str] = (),
    sample: float | None = None,
) -> bool:
    """Print a line per folder that is whole, and every problem of those that are not.

    Args:
        folders: prepared folders.
        console: where the lines and the progress go.
        against: the files that the one folder was made of, in that order.
        sample: share of their documents (0-1) that is encoded again; ``SAMPLE`` when None.

    Returns:
        Whether all are whole.

    Raises:
        ValueError: ``against`` with several folders, or ``sample`` without it.
    """
    if against and len(folders) > 1:
        raise ValueError(
            f"--against: the text of one folder, and {len(folders)} are given. Verify them one by "
            "one."
        )
    if sample is not None and not against:
        raise ValueError("--sample: a share of no text. Name its files with --against.")
    manifests = {folder: _load(folder) for folder in folders}
    held_out = _held_out(manifests)
    num_damaged = 0
    for folder, manifest in manifests.items():
        findings = Findings()
        if isinstance(manifest, Manifest):
            findings = _verify_one(manifest, console, held_out)
            if against:
                _compare(manifest, against, SAMPLE if sample is None else sample, findings, console)
        else:
            findings.problems.append(manifest)
        num_damaged += bool(findings.problems)
        _show(folder, manifest, findings, console)
    return not num_damaged


def _load(folder: Path) -> Manifest | str:
    try:
        return load_manifest(folder)
    except (ValueError, OSError) as error:
        return str(error)


def _held_out(manifests: Mapping[Path, Manifest | str]) -> list[_HeldOut]:
    """Return the held-out documents of each folder, where there are several."""
    there = [each for each in manifests.values() if isinstance(each, Manifest)]
    return [(each, held_out_of(each)) for each in there] if len(there) > 1 else []


def _verify_one(manifest: Manifest, console: Console, held_out: Sequence[_HeldOut]) -> Findings:
    others = [
        documents.again()
        for other, of_folder in held_out
        # The same tokens of another tokenizer are another text.
        if other.path != manifest.path and other.tokenizer == manifest.tokenizer
        for documents in of_folder
    ]
    what, total = f"reading {manifest.path.parent.name}", num_bytes_to_read(manifest)
    progress = partial(byte_progress, console, what, total)
    return verify_folder(manifest, progress, others=others)


def _compare(
    manifest: Manifest,
    inputs: Sequence[Path | str],
    sample: float,
    findings: Findings,
    console: Console,
) -> None:
    """Compare with the text, and add what was found."""
    if findings.problems:
        findings.notes.append("not compared with the text: that needs files without a fault.")
        return
    total = sum(split.documents for split in manifest.splits().values())
    with document_progress(console, "reading the text", total) as advance:
        found = compare_with_inputs(manifest, inputs, sample=sample, advance=advance)
    findings.problems += found.problems
    if not found.problems:
        more = "" if found.num_compared else " Compare more with a larger --sample."
        findings.notes.append(
            f"{found.num_compared:,} of {total:,} documents were encoded again: the tokens are the "
            f"same.{more}"
        )


def _show(folder: Path, manifest: Manifest | str, findings: Findings, console: Console) -> None:
    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    if isinstance(manifest, Manifest) and not findings.problems:
        splits = "; ".join(
            f"{name} {split.documents:,} documents, {split.tokens:,} tokens"
            for name, split in manifest.splits().items()
        )
        line(f"{folder}: whole: {splits}")
    else:
        noun = "problem" if len(findings.problems) == 1 else "problems"
        line(f"{folder}: {len(findings.problems)} {noun}", "red")
        for problem in findings.problems:
            line(f"  - {problem}", "red")
    for note in findings.notes:
        line(f"  note: {note}")
