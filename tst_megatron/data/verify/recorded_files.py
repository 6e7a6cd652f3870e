"""Compare the files of a prepared folder with what its manifest recorded of them."""

from __future__ import annotations

from pathlib import Path

from tst_megatron.data.manifest import FILE_NAME, Manifest
from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path, where_it_leads
from tst_megatron.system.files import file_sha256

BRING_BACK = "Bring the file back, or delete the folder and prepare the text again."


def verify_files(manifest: Manifest) -> None:
    """Compare the content of every file with the manifest; reads all of them.

    Raises:
        ValueError: a file is missing or its content differs.
    """
    problems = tokenizer_problems(manifest)
    for split in manifest.splits().values():
        for file, sha256 in (
            (bin_path(split.prefix), split.bin_sha256),
            (idx_path(split.prefix), split.idx_sha256),
        ):
            if not file.is_file():
                problems.append(missing(file))
            elif file_sha256(file) != sha256:
                problems.append(differs(file))
    if problems:
        raise ValueError("\n".join(problems))


def missing(file: Path) -> str:
    """Say that a file of a folder is missing."""
    return f"{file}: is missing{where_it_leads(file)}. {BRING_BACK}"


def differs(file: Path) -> str:
    """Say that a file of a folder is not the one whose hash was recorded."""
    return f"{file}: differs from its sha256 in {FILE_NAME}{where_it_leads(file)}. {BRING_BACK}"


def tokenizer_problems(manifest: Manifest) -> list[str]:
    """Check that a folder still has the tokenizer that made its tokens."""
    path = manifest.tokenizer_path
    try:
        if tokenizer_sha256(path) == manifest.tokenizer.sha256:
            return []
    except FileNotFoundError:
        return [f"{path}: is missing. Bring it back."]
    return [f"{path}: is not the tokenizer that made this text. Bring it back."]


def changed_files(manifest: Manifest) -> list[str]:
    """List what is wrong with the files of a folder, as far as a start-up can read them.

    A file that was replaced under the same name is noticed; `verify_files` reads everything.
    """
    problems = []
    for split in manifest.splits().values():
        for file, expected in (
            (bin_path(split.prefix), split.bin_fingerprint),
            (idx_path(split.prefix), split.idx_fingerprint),
        ):
            if not file.is_file():
                problems.append(f"{file}: is missing{where_it_leads(file)}. Prepare the text again")
            elif fingerprint(file) != expected:
                problems.append(
                    f"{file}: its content is not what {manifest.path.name} recorded"
                    f"{where_it_leads(file)}: it was written anew or is damaged. Bring the file "
                    "back, or prepare the text again"
                )
    return problems + [problem.removesuffix(".") for problem in tokenizer_problems(manifest)]
